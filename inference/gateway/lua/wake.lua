-- Wakes whoever listens on a plain channel. ARGV: channel
return redis.call('PUBLISH', ARGV[1], '')
