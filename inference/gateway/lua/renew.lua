-- Keep what is held for requests in flight; what a restarted Redis has forgotten is held again. What was held by the
-- dead is given back.
--
-- KEYS  1 all ledgers   2 what is held of them (see admit.lua)
-- ARGV  1 lease_s   then the members of the zset

local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1e6
local until_s = string.format('%.3f', now + tonumber(ARGV[1]))
local more = {}

local function count(member, sign)
  local nano, places = string.match(member, '|(%d+)|(.*)$')
  for place in string.gmatch(places, '[^,]+') do more[place] = (more[place] or 0) + sign * tonumber(nano) end
end

for i = 2, #ARGV do
  if redis.call('ZADD', KEYS[2], until_s, ARGV[i]) == 1 then count(ARGV[i], 1) end
end
local lost = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 1000)
if #lost > 0 then
  redis.call('ZREM', KEYS[2], unpack(lost))
  for _, member in ipairs(lost) do count(member, -1) end
end
for place, nano in pairs(more) do
  local state = redis.call('HGET', KEYS[1], place)
  if state then
    local spent, held, period = struct.unpack('>dds', state)
    redis.call('HSET', KEYS[1], place, struct.pack('>dds', spent, held + nano, period))
  end
end
return 1
