-- Where a job is that has not been heard of. Returns {still waiting in its queue (1 or 0), status or "", worker or ""}.
--
-- KEYS  1 queue   2 job hash
-- ARGV  1 job id

local fields = redis.call('HMGET', KEYS[2], 'status', 'worker_name')
local place = redis.call('LPOS', KEYS[1], ARGV[1])
if not fields[1] then return {0, '', ''} end
return {place and 1 or 0, fields[1], fields[2] or ''}
