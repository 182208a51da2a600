-- Open a budget's ledger that is not in Redis: from what the rows say, and the records that are not in the rows yet.
--
-- KEYS  1 all ledgers   2 what is held of them (see admit.lua)   3 usage stream
-- ARGV  1 label of the period   2 nano-dollars spent by the rows   3 the last record that is in them
--       4 the record's field that must be   5 this   6 unix time of the period's beginning   7 the budget's place
--       8 "again" to count what gateways settled before they had heard of the budget
-- Returns 1, or 0 when somebody else opened it first, or there is nothing more to count.
-- Counted again, a ledger only ever rises: a record that a full stream turned away is in no stream, and was charged.

local known = redis.call('HGET', KEYS[1], ARGV[7])
if known and ARGV[8] ~= 'again' then return 0 end
local spent, from = tonumber(ARGV[2]), ARGV[3]
local field, subject, since = ARGV[4], ARGV[5], tonumber(ARGV[6])
while true do
  local records = redis.call('XRANGE', KEYS[3], '(' .. from, '+', 'COUNT', 1000)
  for _, entry in ipairs(records) do
    from = entry[1]
    local record = cjson.decode(entry[2][2])
    if record[field] == subject and record.at >= since then spent = spent + (record.cost_nano or 0) end
  end
  if #records < 1000 then break end
end
if known then
  local was, holds, period = struct.unpack('>dds', known)
  if period ~= ARGV[1] or spent <= was then return 0 end
  redis.call('HSET', KEYS[1], ARGV[7], struct.pack('>dds', spent, holds, period))
  return 1
end
local held, place = 0, ',' .. ARGV[7] .. ','
for _, member in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
  local nano, places = string.match(member, '|(%d+)|(.*)$')
  if string.find(',' .. places .. ',', place, 1, true) then held = held + tonumber(nano) end
end
redis.call('HSET', KEYS[1], ARGV[7], struct.pack('>dds', spent, held, ARGV[1]))
return 1
