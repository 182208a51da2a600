-- Move waiting jobs to started, in the order of the queues, all in one step: none is lost between.
-- Strict by class, but for aging: where the first job of a lower class has waited since before ARGV[7], it goes
-- before the others, one in every fourth pull. So low is slow, and never starved.
-- KEYS: the queues' lists, then the bell, then the worker's hash and the set of its executions, then the fence:
-- a replica that was given up gets nothing more
-- ARGV: most jobs, worker name, now (ISO), now (unix), execution ttl (s), execution id prefix, aged before (ISO),
--       queue names...
-- Returns {waiting jobs left, {job id, queue name, execution id, data, enqueued_at}, ...}
local most, worker, stamp, now = tonumber(ARGV[1]), ARGV[2], ARGV[3], tonumber(ARGV[4])
local ttl, prefix = tonumber(ARGV[5]), ARGV[6]
local queues = #KEYS - 4
local bell, worker_key, executions_key = KEYS[queues + 1], KEYS[queues + 2], KEYS[queues + 3]
local found, left = {0}, 0

if redis.call('EXISTS', KEYS[queues + 4]) == 1 then return found end

local function take(index, upto)
  local list, name = KEYS[index], ARGV[7 + index]
  local fair = 'mmserve:fair:' .. list
  while #found <= upto do
    local id = redis.call('LPOP', list)
    if not id then break end
    local tag = redis.call('HGET', fair, 'j:' .. id)
    if tag then
      -- Virtual time is the tag of what is served.
      redis.call('HSET', fair, 'v', tag)
      redis.call('HDEL', fair, 'j:' .. id)
    end
    local key = 'rq:job:' .. id
    local job = redis.call('HMGET', key, 'data', 'enqueued_at', 'status')
    if job[1] and job[3] ~= 'canceled' then
      local execution = prefix .. string.format('%08x', #found)
      local composite = id .. ':' .. execution
      redis.call('HSET', key, 'status', 'started', 'started_at', stamp, 'last_heartbeat', stamp, 'worker_name', worker)
      redis.call('PERSIST', key)
      redis.call('HSET', 'rq:execution:' .. composite, 'id', execution, 'job_id', id, 'created_at', ARGV[4],
                 'last_heartbeat', ARGV[4], 'worker_name', worker)
      redis.call('EXPIRE', 'rq:execution:' .. composite, ttl)
      redis.call('ZADD', 'rq:executions:' .. id, now + ttl + 60, execution)
      redis.call('EXPIRE', 'rq:executions:' .. id, ttl + 60)
      redis.call('ZADD', 'rq:wip:' .. name, now + ttl, composite)
      redis.call('SADD', executions_key, composite)
      found[#found + 1] = {id, name, execution, job[1], job[2] or ''}
    end
  end
end

-- A quarter of the pulls: the higher classes keep most of the engine.
local turns = 'mmserve:pulls:' .. bell
if redis.call('INCR', turns) % 4 == 0 then
  for index = queues, 2, -1 do
    local head = redis.call('LINDEX', KEYS[index], 0)
    local since = head and redis.call('HGET', 'rq:job:' .. head, 'enqueued_at')
    if since and since < ARGV[7] and #found <= most then take(index, #found) end
  end
end
redis.call('EXPIRE', turns, 3600)
for index = 1, queues do
  take(index, most)
  left = left + redis.call('LLEN', KEYS[index])
end

if #found > 1 then
  redis.call('EXPIRE', executions_key, ttl + 60)
  redis.call('HSET', worker_key, 'state', 'busy')
end
if left > 0 and redis.call('LLEN', bell) == 0 then redis.call('RPUSH', bell, 1) end
found[1] = left
return found
