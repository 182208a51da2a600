-- Take a job that no engine has begun out of its queue. Returns 1 if it was waiting there.
--
-- KEYS  1 queue   2 job hash
-- ARGV  1 job id

if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 1 then
  redis.call('DEL', KEYS[2])
  redis.call('HDEL', 'mmserve:fair:' .. KEYS[1], 'j:' .. ARGV[1])
  return 1
end
return 0
