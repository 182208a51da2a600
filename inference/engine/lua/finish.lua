-- End a batch of executions the way that RQ does, with its prompt taken out of the job.
-- KEYS: the worker's hash, the set of its executions
-- ARGV: worker name, now (ISO), now (unix), result ttl (s), failure ttl (s), blank data, state after,
--       then per job: job id, queue, execution id, outcome, seconds worked, result (base64), error (deflated), error (base64)
local worker_key, executions_key = KEYS[1], KEYS[2]
local worker, stamp, now = ARGV[1], ARGV[2], tonumber(ARGV[3])
local blank, state = ARGV[6], ARGV[7]
local REGISTRY = {finished = 'rq:finished:', failed = 'rq:failed:', canceled = 'rq:canceled:'}
local default_ttl = {finished = tonumber(ARGV[4]), canceled = tonumber(ARGV[4]), failed = tonumber(ARGV[5])}
local RESULT_TYPE = {finished = '1', failed = '2', canceled = '3'}
local counts, worked, pruned = {finished = 0, failed = 0, canceled = 0}, 0, {}

for at = 8, #ARGV, 8 do
  local id, queue, execution, outcome = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local key, composite = 'rq:job:' .. id, id .. ':' .. execution
  local began = redis.call('HGET', 'rq:execution:' .. composite, 'created_at')
  redis.call('DEL', 'rq:execution:' .. composite, 'rq:executions:' .. id)
  redis.call('ZREM', 'rq:wip:' .. queue, composite)
  redis.call('SREM', executions_key, composite)
  counts[outcome] = counts[outcome] + 1
  worked = worked + tonumber(ARGV[at + 4])

  -- A Redis that was flushed has no such job; half a hash must not be left in its place.
  local job = redis.call('HMGET', key, 'status', outcome == 'failed' and 'failure_ttl' or 'result_ttl')
  if job[1] then
    local ttl = tonumber(job[2] or '') or -1
    if ttl < 0 or ttl > default_ttl[outcome] then ttl = default_ttl[outcome] end
    if ttl == 0 then
      redis.call('DEL', key)
    else
      redis.call('HSET', key, 'status', outcome, 'ended_at', stamp, 'last_heartbeat', stamp, 'data', blank)
      local results = 'rq:results:' .. id
      local fields = {'type', RESULT_TYPE[outcome], 'worker_name', worker, 'execution_id', execution,
                      'execution_ended_at', ARGV[3]}
      if began then fields[#fields + 1] = 'execution_started_at'; fields[#fields + 1] = began end
      if ARGV[at + 5] ~= '' then fields[#fields + 1] = 'return_value'; fields[#fields + 1] = ARGV[at + 5] end
      if ARGV[at + 6] ~= '' then
        redis.call('HSET', key, 'exc_info', ARGV[at + 6])
        fields[#fields + 1] = 'exc_string'; fields[#fields + 1] = ARGV[at + 7]
      end
      redis.call('XADD', results, 'MAXLEN', '10', '*', unpack(fields))
      redis.call('EXPIRE', results, ttl)
      redis.call('EXPIRE', key, ttl)
      local registry = REGISTRY[outcome] .. queue
      redis.call('ZADD', registry, now + ttl, id)
      if not pruned[registry] then
        redis.call('ZREMRANGEBYSCORE', registry, 0, now)
        pruned[registry] = true
      end
    end
  end
end

if redis.call('EXISTS', worker_key) == 1 then
  if counts.finished > 0 then redis.call('HINCRBY', worker_key, 'successful_job_count', counts.finished) end
  if counts.failed > 0 then redis.call('HINCRBY', worker_key, 'failed_job_count', counts.failed) end
  redis.call('HINCRBYFLOAT', worker_key, 'total_working_time', worked)
  redis.call('HSET', worker_key, 'state', state)
end
return counts.finished
