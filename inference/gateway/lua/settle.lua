-- Give back what an answered request did not use, release its lease, and write its usage record.
--
-- KEYS  1 rate bucket of the access key   2 its leases   3 usage stream
-- ARGV  1 lease member   2 tokens per minute (0: no limit)   3 tokens reserved   4 tokens used
--       5 about how many records the stream keeps   6 the record (JSON)
-- The bucket may go below zero: an answer longer than was reserved is paid for by waiting longer.

local per_tokens = tonumber(ARGV[2])
if per_tokens > 0 then
  local tokens = redis.call('HGET', KEYS[1], 'tokens')
  if tokens then
    local reserved = math.min(tonumber(ARGV[3]), per_tokens)
    local left = math.min(per_tokens, tonumber(tokens) + reserved - tonumber(ARGV[4]))
    redis.call('HSET', KEYS[1], 'tokens', string.format('%.6f', left))
  end
end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[5], '*', 'record', ARGV[6])
return 1
