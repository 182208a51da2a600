-- Check the key's rates and concurrency, the deployment's queue and the budgets that pay; if all pass, reserve the
-- cost, enqueue one RQ job and ring the bell.
--
-- KEYS  1 rate bucket of the access key   2 its leases   3 job hash   4 queue   5 rq:queues   6 bell   7 to 9 all
--       queues of the deployment   then, where budgets pay: 10 all ledgers (hash: of each budget what is spent, held,
--       and the period, by place: struct's '>dds')   11 what is held of them (zset of "job id|nano-dollars|place,place,…", scored by when the lease ends)
-- ARGV  1 job id   2 lease member   3 lease_s   4 requests per minute (0: no limit)   5 tokens per minute (0)
--       6 tokens to reserve   7 most concurrent requests (0)   8 queue bound   9 job whose place this one takes, or ""
--       10 whose turn counts: the access key's id   11 nano-dollars to reserve
--       12 the budgets that pay, as MessagePack of [place, period, limit, place, …], or ""
--       13 the replica that may take it first, or ""   14 for how long only that one may (s)
--       15 as MessagePack of members of that zset: what is to be held from now on for the attempt that this one replaces
--       (its bill, or ""), then what was; or ""
--       then the fields of the job's hash
-- Returns {verdict, wait_ms, requests left, requests reset_ms, tokens left, tokens reset_ms, waiting, which budget,
-- nano-dollars left of it (the tightest one's, when all can pay)}; a verdict is "ok", "requests", "tokens", "concurrency", "queue", "budget", or "ledger":
-- that budget's ledger is not in Redis and has to be opened from the stored usage first.
-- A bucket holds at most one minute's worth, and fills evenly (a token bucket by Redis' own clock). A job that takes
-- another's place was admitted before: only its queue entry is written (and what it reserves, if it reserves anew).
-- A budget never pays for more than its limit: what is spent, what is held for others, and this, together. A request
-- that costs nothing passes while a budget is not overdrawn. What is held for an attempt that is given up goes to the
-- one in its place, in the same step, but for its bill: a request holds what one attempt may cost, however many it needs. What is held for a request whose gateway died comes back
-- when its lease ends. A period only moves forward: gateways' clocks may differ.
-- Fair between keys (start-time fair queueing, Goyal 1996): a job's tag is one more than its key's last one, or than
-- the queue's virtual time if that is later, and the list is kept in the order of tags. A key with a thousand jobs
-- waiting does not stop one with a single job.

local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1e6
local per_requests, per_tokens = tonumber(ARGV[4]), tonumber(ARGV[5])
local replaces = ARGV[9]
local cost = tonumber(ARGV[11])

local waiting = 0
for i = 7, 9 do waiting = waiting + redis.call('LLEN', KEYS[i]) end

local requests_left, tokens_left = per_requests, per_tokens
local requests_reset, tokens_reset = 0, 0

local function answer(verdict, wait_s, budget, left)
  return {verdict, math.ceil(wait_s * 1000), math.floor(requests_left), math.ceil(requests_reset * 1000),
          math.floor(tokens_left), math.ceil(tokens_reset * 1000), waiting, budget or 0, left or 0}
end

local function add_up(member, sums, sign)
  local nano, places = string.match(member, '|(%d+)|(.*)$')
  for place in string.gmatch(places, '[^,]+') do sums[place] = (sums[place] or 0) + sign * tonumber(nano) end
end

local function take_off(sums)
  for place, nano in pairs(sums) do
    local state = redis.call('HGET', KEYS[10], place)
    if state then
      local spent, held, period = struct.unpack('>dds', state)
      redis.call('HSET', KEYS[10], place, struct.pack('>dds', spent, held - nano, period))
    end
  end
end

-- What was held by the dead: looked for when there is not enough, and at each renewal.
local function given_back()
  local back = {}
  while true do
    local lost = redis.call('ZRANGEBYSCORE', KEYS[11], '-inf', now, 'LIMIT', 0, 1000)
    if #lost == 0 then break end
    redis.call('ZREM', KEYS[11], unpack(lost))
    for _, member in ipairs(lost) do add_up(member, back, 1) end
  end
  take_off(back)
  return next(back) ~= nil
end

local tightest, tightest_left = 0, 0
-- The budgets that pay, and the ledgers as they are to be once they have paid.
local places, periods, limits, reserved = {}, {}, {}, {}
if ARGV[12] ~= '' then
  local told = cmsgpack.unpack(ARGV[12])
  for i = 1, #told, 3 do
    places[#places + 1], periods[#periods + 1], limits[#limits + 1] = told[i], told[i + 1], told[i + 2]
  end
end
-- What is held for the attempts that this one replaces, and what stays held; of each budget, how much comes free.
local replaced, bill, freed = {}, '', {}
if ARGV[15] ~= '' then
  replaced = cmsgpack.unpack(ARGV[15])
  bill = table.remove(replaced, 1)
end

-- Whether every budget can pay; else the refusal.
local function refused_by_a_budget()
  if #places == 0 then return end
  local states = redis.call('HMGET', KEYS[10], unpack(places))
  tightest, reserved, freed = 0, {}, {}
  for _, member in ipairs(replaced) do
    if redis.call('ZSCORE', KEYS[11], member) then add_up(member, freed, 1) end
  end
  if bill ~= '' and not redis.call('ZSCORE', KEYS[11], bill) then add_up(bill, freed, -1) end
  for i = 1, #places do
    if not states[i] then return answer('ledger', 0, i) end
    local spent, held, period = struct.unpack('>dds', states[i])
    if periods[i] > period then period, spent = periods[i], 0 end
    held = held - (freed[places[i]] or 0) + cost
    local left = limits[i] - spent - held
    if left < 0 then
      if given_back() then return refused_by_a_budget() end
      return answer('budget', 0, i, left + cost)
    end
    if tightest == 0 or left < tightest_left then tightest, tightest_left = i, left end
    reserved[2 * i - 1], reserved[2 * i] = places[i], struct.pack('>dds', spent, held, period)
  end
end

if replaces == '' then
  local limited = per_requests > 0 or per_tokens > 0
  if limited then
    local bucket = redis.call('HMGET', KEYS[1], 'at', 'requests', 'tokens')
    local passed = math.max(0, now - (tonumber(bucket[1]) or 0))
    requests_left = math.min(per_requests, (tonumber(bucket[2]) or per_requests) + passed * per_requests / 60)
    tokens_left = math.min(per_tokens, (tonumber(bucket[3]) or per_tokens) + passed * per_tokens / 60)
    if per_requests > 0 then requests_reset = (per_requests - requests_left) * 60 / per_requests end
    if per_tokens > 0 then tokens_reset = (per_tokens - tokens_left) * 60 / per_tokens end
  end
  -- A request that is larger than a minute's worth waits for a full bucket: it could never pass otherwise.
  local reserve = math.min(tonumber(ARGV[6]), per_tokens)
  if per_requests > 0 and requests_left < 1 then
    return answer('requests', (1 - requests_left) * 60 / per_requests)
  end
  if per_tokens > 0 and tokens_left < reserve then
    return answer('tokens', (reserve - tokens_left) * 60 / per_tokens)
  end
  if waiting >= tonumber(ARGV[8]) then return answer('queue', 0) end
  local refusal = refused_by_a_budget()
  if refusal then return refusal end
  local most = tonumber(ARGV[7])
  if most > 0 then
    redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
    if redis.call('ZCARD', KEYS[2]) >= most then return answer('concurrency', 1) end
    redis.call('ZADD', KEYS[2], now + tonumber(ARGV[3]), ARGV[2])
    redis.call('PEXPIRE', KEYS[2], math.ceil(tonumber(ARGV[3]) * 1000))
  end
  if limited then
    if per_requests > 0 then
      requests_left = requests_left - 1
      requests_reset = requests_reset + 60 / per_requests
    end
    if per_tokens > 0 then
      tokens_left = tokens_left - reserve
      tokens_reset = tokens_reset + reserve * 60 / per_tokens
    end
    redis.call('HSET', KEYS[1], 'at', string.format('%.6f', now), 'requests', string.format('%.6f', requests_left),
               'tokens', string.format('%.6f', tokens_left))
    redis.call('PEXPIRE', KEYS[1], 120000)
  end
else
  local refusal = refused_by_a_budget()
  if refusal then return refusal end
  for i = 7, 9 do redis.call('LREM', KEYS[i], 1, replaces) end
  redis.call('DEL', 'rq:job:' .. replaces)
end

if next(freed) then
  for _, member in ipairs(replaced) do redis.call('ZREM', KEYS[11], member) end
  if bill ~= '' then redis.call('ZADD', KEYS[11], string.format('%.3f', now + tonumber(ARGV[3])), bill) end
  redis.call('HSET', KEYS[10], unpack(reserved))
  for _, place in ipairs(places) do freed[place] = nil end
  take_off(freed)
end
if cost > 0 and #places > 0 then
  redis.call('HSET', KEYS[10], unpack(reserved))
  redis.call('ZADD', KEYS[11], string.format('%.3f', now + tonumber(ARGV[3])),
             ARGV[1] .. '|' .. ARGV[11] .. '|' .. table.concat(places, ','))
end

redis.call('HSET', KEYS[3], unpack(ARGV, 16))
redis.call('SADD', KEYS[5], KEYS[4])

local fair = 'mmserve:fair:' .. KEYS[4]
local length = redis.call('LLEN', KEYS[4])
if length == 0 then
  -- Nobody waits: nothing to be fair about.
  redis.call('DEL', fair)
  redis.call('HSET', fair, 'k:' .. ARGV[10], 1, 'j:' .. ARGV[1], 1)
  redis.call('RPUSH', KEYS[4], ARGV[1])
else
  local known = redis.call('HMGET', fair, 'v', 'k:' .. ARGV[10])
  local tag = math.max(tonumber(known[1]) or 0, tonumber(known[2]) or 0) + 1
  -- One whose place this takes has waited already.
  if replaces ~= '' then tag = tonumber(known[1]) or 0 end
  redis.call('HSET', fair, 'k:' .. ARGV[10], tag, 'j:' .. ARGV[1], tag)
  -- From the tail: most jobs belong there.
  local pivot, stop = nil, length - 1
  while stop >= 0 and not pivot do
    local start = math.max(0, stop - 63)
    local ids = redis.call('LRANGE', KEYS[4], start, stop)
    local fields = {}
    for i = 1, #ids do fields[i] = 'j:' .. ids[i] end
    local tags = redis.call('HMGET', fair, unpack(fields))
    for i = #ids, 1, -1 do
      if (tonumber(tags[i]) or 0) <= tag then pivot = ids[i] break end
    end
    stop = start - 1
  end
  if not pivot then
    redis.call('LPUSH', KEYS[4], ARGV[1])
  elseif redis.call('LINDEX', KEYS[4], -1) == pivot then
    redis.call('RPUSH', KEYS[4], ARGV[1])
  else
    redis.call('LINSERT', KEYS[4], 'AFTER', pivot, ARGV[1])
  end
end
redis.call('PEXPIRE', fair, 3600000)

local alone = false
if ARGV[13] ~= '' then
  redis.call('HSET', KEYS[3], 'prefers', ARGV[13], 'held_until', string.format('%.3f', now + tonumber(ARGV[14])))
  -- A replica that has not heard its own bell since the last time is busy, or gone: the others hear of it, too.
  local own = KEYS[6] .. ':' .. ARGV[13]
  alone = redis.call('EXISTS', own) == 0
  if alone then
    redis.call('RPUSH', own, '1')
    redis.call('PEXPIRE', own, 60000)
  end
end
if not alone and redis.call('EXISTS', KEYS[6]) == 0 then redis.call('RPUSH', KEYS[6], '1') end
return answer('ok', 0, tightest, tightest_left)
