-- Settle answered requests: give back what each did not use, release its lease, charge its budgets, and write down
-- what it used and how it was decided.
--
-- KEYS  1 usage stream   2 the last settlements of this gateway   3 how many records were turned away   4 all decisions
--       5 all ledgers   6 what is held of them (see admit.lua)
-- ARGV  1 number of these settlements   2 they themselves (MessagePack: a list of settling.Settlement's fields)
--       3 how many records the stream may hold   4 how long a decision is kept (s)   5 how many are kept   6 unix time
-- A gateway sends its settlements in order, and the last ones again when it has not heard that they arrived: a number
-- that is not higher than the last one's was settled before.
-- A rate bucket may go below zero: an answer longer than was reserved is paid for by waiting longer. A budget may be
-- overdrawn only by what a request cost beyond its reservation. A ledger that is not there is opened from the stored
-- usage and this very stream, so the record alone charges it.

if (tonumber(redis.call('GET', KEYS[2]) or 0)) >= tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[2], ARGV[1], 'EX', 3600)

local settlements = cmsgpack.unpack(ARGV[2])
local ledgers, places = {}, {}
local room = tonumber(ARGV[3]) - redis.call('XLEN', KEYS[1])
local lost, kept = 0, {}

-- A budget's ledger as it is to be; false where there is none.
local function ledger_of(place)
  local ledger = ledgers[place]
  if ledger == nil then
    local state = redis.call('HGET', KEYS[5], place)
    ledger = false
    if state then
      local spent, held, period = struct.unpack('>dds', state)
      ledger = {spent = spent, held = held, period = period}
    end
    ledgers[place], places[#places + 1] = ledger, place
  end
  return ledger
end

for _, one in ipairs(settlements) do
  local rate_key, lease_key, member, per_tokens, reserved, used, _, cost, terms, held = unpack(one)
  if per_tokens > 0 then
    local tokens = redis.call('HGET', rate_key, 'tokens')
    if tokens then
      local left = math.min(per_tokens, tonumber(tokens) + math.min(reserved, per_tokens) - used)
      redis.call('HSET', rate_key, 'tokens', string.format('%.6f', left))
    end
  end
  if member ~= '' then redis.call('ZREM', lease_key, member) end

  for _, hold in ipairs(held) do
    if redis.call('ZREM', KEYS[6], hold[1]) == 1 then
      for _, place in ipairs(hold[3]) do
        local ledger = ledger_of(place)
        if ledger then ledger.held = ledger.held - hold[2] end
      end
    end
  end
  for i = 1, #terms, 3 do
    local ledger, period = ledger_of(terms[i]), terms[i + 1]
    if ledger and period > ledger.period then
      ledger.period, ledger.spent = period, cost
    elseif ledger then
      ledger.spent = ledger.spent + cost
    end
  end
end

local changed = {}
for _, place in ipairs(places) do
  local ledger = ledgers[place]
  if ledger then
    changed[#changed + 1] = place
    changed[#changed + 1] = struct.pack('>dds', ledger.spent, ledger.held, ledger.period)
  end
end
if #changed > 0 then redis.call('HSET', KEYS[5], unpack(changed)) end

for _, one in ipairs(settlements) do
  local record, id, decision = one[7], one[11], one[12]
  if record ~= '' then
    if room > 0 then
      redis.call('XADD', KEYS[1], '*', 'record', record)
      room = room - 1
    else
      lost = lost + 1
    end
  end
  if decision ~= '' then
    redis.call('SET', 'mmserve:decision:' .. id, decision, 'EX', ARGV[4])
    kept[#kept + 1], kept[#kept + 2] = ARGV[6], id
  end
end

if lost > 0 then redis.call('INCRBY', KEYS[3], lost) end
if #kept > 0 then
  redis.call('ZADD', KEYS[4], unpack(kept))
  redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', '(' .. (tonumber(ARGV[6]) - tonumber(ARGV[4])))
  local many = redis.call('ZCARD', KEYS[4]) - tonumber(ARGV[5])
  if many > 0 then
    local oldest = redis.call('ZPOPMIN', KEYS[4], many)
    for i = 1, #oldest, 2 do redis.call('DEL', 'mmserve:decision:' .. oldest[i]) end
  end
end
return 1
