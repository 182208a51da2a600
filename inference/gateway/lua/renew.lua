-- Keep what is held for requests in flight; what a restarted Redis has forgotten is held again.
--
-- KEYS  for each of them: a budget's ledger, and what is held of it
-- ARGV  1 lease_s   then for each: its member of the zset

local clock = redis.call('TIME')
local until_s = string.format('%.3f', tonumber(clock[1]) + tonumber(clock[2]) / 1e6 + tonumber(ARGV[1]))
for i = 1, #KEYS, 2 do
  local member = ARGV[(i + 1) / 2 + 1]
  if redis.call('ZADD', KEYS[i + 1], until_s, member) == 1 and redis.call('EXISTS', KEYS[i]) == 1 then
    redis.call('HINCRBY', KEYS[i], 'held', string.match(member, ':(%d+)$'))
  end
end
return 1
