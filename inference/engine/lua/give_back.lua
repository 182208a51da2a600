-- Put started jobs back to the head of their queues, in their old order, for another replica.
-- KEYS: the set of the worker's executions, the bell
-- ARGV: per job, last in line first: job id, queue, execution id
for at = 1, #ARGV, 3 do
  local id, queue, execution = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local composite = id .. ':' .. execution
  redis.call('DEL', 'rq:execution:' .. composite, 'rq:executions:' .. id)
  redis.call('ZREM', 'rq:wip:' .. queue, composite)
  redis.call('SREM', KEYS[1], composite)
  if redis.call('EXISTS', 'rq:job:' .. id) == 1 then
    redis.call('HSET', 'rq:job:' .. id, 'status', 'queued', 'started_at', '', 'worker_name', '')
    redis.call('HDEL', 'rq:job:' .. id, 'prefers', 'held_until')
    redis.call('LPUSH', 'rq:queue:' .. queue, id)
  end
end
if redis.call('LLEN', KEYS[2]) == 0 then redis.call('RPUSH', KEYS[2], 1) end
return #ARGV / 3
