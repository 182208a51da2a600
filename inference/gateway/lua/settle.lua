-- Give back what an answered request did not use, release its lease, charge its budgets, and write down what it used
-- and how it was decided.
--
-- KEYS  1 rate bucket of the access key   2 its leases   3 usage stream   4 the last settlement of this gateway
--       5 how many records were turned away   6 the decision   7 all decisions   then, where budgets pay: 8 all ledgers
--       9 what is held of them (see admit.lua)
-- ARGV  1 lease member   2 tokens per minute (0: no limit)   3 tokens reserved   4 tokens used
--       5 how many records the stream may hold   6 the record (JSON), or ""   7 number of this settlement   8 cost in
--       nano-dollars   9 the decision (JSON), or ""   10 its id   11 how long it is kept (s)   12 how many are kept
--       13 unix time   then, where budgets pay: 14 which, as "place period limit …"   15 what was held of them: the
--       zset's members, with spaces between
-- A gateway sends its settlements in order, and all of a batch again when it has not heard that they arrived: a number
-- that is not higher than the last one's was settled before.
-- The bucket may go below zero: an answer longer than was reserved is paid for by waiting longer. A budget may be
-- overdrawn only by what a request cost beyond its reservation. A ledger that is not there is opened from the stored
-- usage and this very stream, so the record alone charges it.

local number = tonumber(ARGV[7])
if (tonumber(redis.call('GET', KEYS[4]) or 0)) >= number then return 0 end
redis.call('SET', KEYS[4], ARGV[7], 'EX', 3600)

local per_tokens = tonumber(ARGV[2])
if per_tokens > 0 then
  local tokens = redis.call('HGET', KEYS[1], 'tokens')
  if tokens then
    local reserved = math.min(tonumber(ARGV[3]), per_tokens)
    local left = math.min(per_tokens, tonumber(tokens) + reserved - tonumber(ARGV[4]))
    redis.call('HSET', KEYS[1], 'tokens', string.format('%.6f', left))
  end
end
if ARGV[1] ~= '' then redis.call('ZREM', KEYS[2], ARGV[1]) end

if #KEYS > 7 then
  local places, periods, back = {}, {}, {}
  for place, period in string.gmatch(ARGV[14], '(%S+) (%S+) %S+') do
    places[#places + 1], periods[#places + 1] = place, period
    back[place] = 0
  end
  for member in string.gmatch(ARGV[15], '%S+') do
    if redis.call('ZREM', KEYS[9], member) == 1 then
      local nano, held_of = string.match(member, '|(%d+)|(.*)$')
      for place in string.gmatch(held_of, '[^,]+') do
        if not back[place] then places[#places + 1], back[place] = place, 0 end
        back[place] = back[place] + tonumber(nano)
      end
    end
  end
  local states, changed = redis.call('HMGET', KEYS[8], unpack(places)), {}
  for i, place in ipairs(places) do
    if states[i] then
      local period, spent, held = string.match(states[i], '(%S+) (%S+) (%S+)')
      if periods[i] and periods[i] > period then
        period, spent = periods[i], ARGV[8]
      elseif periods[i] then
        spent = spent + ARGV[8]
      end
      changed[#changed + 1] = place
      changed[#changed + 1] = string.format('%s %.0f %.0f', period, spent, held - back[place])
    end
  end
  if #changed > 0 then redis.call('HSET', KEYS[8], unpack(changed)) end
end

if ARGV[6] ~= '' then
  if redis.call('XLEN', KEYS[3]) >= tonumber(ARGV[5]) then
    redis.call('INCR', KEYS[5])
  else
    redis.call('XADD', KEYS[3], '*', 'record', ARGV[6])
  end
end

if ARGV[9] ~= '' then
  redis.call('SET', KEYS[6], ARGV[9], 'EX', ARGV[11])
  redis.call('ZADD', KEYS[7], ARGV[13], ARGV[10])
  redis.call('ZREMRANGEBYSCORE', KEYS[7], '-inf', '(' .. (tonumber(ARGV[13]) - tonumber(ARGV[11])))
  local many = redis.call('ZCARD', KEYS[7]) - tonumber(ARGV[12])
  if many > 0 then
    local oldest = redis.call('ZPOPMIN', KEYS[7], many)
    for i = 1, #oldest, 2 do redis.call('DEL', 'mmserve:decision:' .. oldest[i]) end
  end
end
return 1
