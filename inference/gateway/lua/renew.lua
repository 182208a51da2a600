-- Keep what is held for requests in flight; what a restarted Redis has forgotten is held again. What was held by the
-- dead is given back.
--
-- KEYS  for each of them: a budget's ledger, and what is held of it
-- ARGV  1 lease_s   then for each: its member of the zset

local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1e6
local until_s = string.format('%.3f', now + tonumber(ARGV[1]))
for i = 1, #KEYS, 2 do
  local member = ARGV[(i + 1) / 2 + 1]
  if redis.call('ZADD', KEYS[i + 1], until_s, member) == 1 and redis.call('EXISTS', KEYS[i]) == 1 then
    redis.call('HINCRBY', KEYS[i], 'held', string.match(member, ':(%d+)$'))
  end
end
for i = 1, #KEYS, 2 do
  local lost = redis.call('ZRANGEBYSCORE', KEYS[i + 1], '-inf', now, 'LIMIT', 0, 1000)
  if #lost > 0 then
    local back = 0
    for _, member in ipairs(lost) do back = back + tonumber(string.match(member, ':(%d+)$')) end
    redis.call('ZREM', KEYS[i + 1], unpack(lost))
    if redis.call('EXISTS', KEYS[i]) == 1 then
      redis.call('HINCRBY', KEYS[i], 'held', '-' .. string.format('%.0f', back))
    end
  end
end
return 1
