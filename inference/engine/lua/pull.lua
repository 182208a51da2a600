-- Move waiting jobs to started, in the order of the queues, all in one step: none is lost between.
-- Strict by class, but for aging: where the first job of a lower class has waited since before ARGV[7], it goes
-- before the others, one in every fourth pull. So low is slow, and never starved. A pull of higher classes alone
-- (ARGV[7] is empty) is none of those.
-- A job that prefers another replica stays in its place for that one: until held_until (by Redis' clock), and while
-- that replica's beat says that it takes jobs and has room. So no job waits long for one that is busy, draining or gone.
-- KEYS: the queues' lists, then the bell, then the worker's hash and the set of its executions, then the fence:
-- a replica that was given up gets nothing more
-- ARGV: most jobs, worker name, now (ISO), now (unix), execution ttl (s), execution id prefix, aged before (ISO),
--       the replica, queue names...
-- Returns {waiting jobs left for this replica, ms until the first of those that are held for others is anybody's (0:
-- none is), {job id, queue name, execution id, data, enqueued_at}, ...}
local most, worker, stamp, now = tonumber(ARGV[1]), ARGV[2], ARGV[3], tonumber(ARGV[4])
local ttl, prefix = tonumber(ARGV[5]), ARGV[6]
local queues = #KEYS - 4
local bell, worker_key, executions_key = KEYS[queues + 1], KEYS[queues + 2], KEYS[queues + 3]
local replica = ARGV[8]
local found, taken, left = {0, 0}, 0, 0
local MOST_HELD = 128 -- jobs of one queue that are looked past
local first_free -- in how many seconds the first of them is anybody's

if redis.call('EXISTS', KEYS[queues + 4]) == 1 then return found end

local clock = redis.call('TIME')
local clock_s = tonumber(clock[1]) + tonumber(clock[2]) / 1e6

local rooms = {}
local function has_room(other)
  if rooms[other] == nil then
    local beat = redis.call('GET', 'mmserve:replica:' .. other)
    local read, load = pcall(cjson.decode, beat or '')
    rooms[other] = read and type(load) == 'table' and load.state == 'ready'
                   and (load.running or 0) + (load.waiting or 0) < (load.max_streams or 0)
                   and redis.call('EXISTS', 'mmserve:fence:' .. other) == 0
  end
  return rooms[other]
end

local function is_held(prefers, held_until)
  if not prefers or prefers == replica then return false end
  local wait_s = (tonumber(held_until) or 0) - clock_s
  if wait_s <= 0 or not has_room(prefers) then return false end
  first_free = math.min(first_free or wait_s, wait_s)
  return true
end

-- Move jobs of one queue until so many are taken in all; how many of it are held for others.
local function take(index, upto)
  local list, name = KEYS[index], ARGV[8 + index]
  local fair = 'mmserve:fair:' .. list
  local held = {}
  while taken < upto and #held < MOST_HELD do
    local id = redis.call('LPOP', list)
    if not id then break end
    local key = 'rq:job:' .. id
    local job = redis.call('HMGET', key, 'data', 'enqueued_at', 'status', 'prefers', 'held_until')
    local wanted = job[1] and job[3] ~= 'canceled'
    if wanted and is_held(job[4], job[5]) then
      held[#held + 1] = id
    else
      local tags = redis.call('HMGET', fair, 'j:' .. id, 'v')
      if tags[1] then
        -- Virtual time is the tag of what is served; it does not go back for one that was held.
        redis.call('HSET', fair, 'v', math.max(tonumber(tags[1]), tonumber(tags[2]) or 0))
        redis.call('HDEL', fair, 'j:' .. id)
      end
      if wanted then
        taken = taken + 1
        local execution = prefix .. string.format('%08x', taken)
        local composite = id .. ':' .. execution
        redis.call('HSET', key, 'status', 'started', 'started_at', stamp, 'last_heartbeat', stamp,
                   'worker_name', worker)
        redis.call('PERSIST', key)
        redis.call('HSET', 'rq:execution:' .. composite, 'id', execution, 'job_id', id, 'created_at', ARGV[4],
                   'last_heartbeat', ARGV[4], 'worker_name', worker)
        redis.call('EXPIRE', 'rq:execution:' .. composite, ttl)
        redis.call('ZADD', 'rq:executions:' .. id, now + ttl + 60, execution)
        redis.call('EXPIRE', 'rq:executions:' .. id, ttl + 60)
        redis.call('ZADD', 'rq:wip:' .. name, now + ttl, composite)
        redis.call('SADD', executions_key, composite)
        found[#found + 1] = {id, name, execution, job[1], job[2] or ''}
      end
    end
  end
  for at = #held, 1, -1 do redis.call('LPUSH', list, held[at]) end
  return #held
end

-- A quarter of the pulls: the higher classes keep most of the engine.
local turns = 'mmserve:pulls:' .. bell
if ARGV[7] ~= '' and redis.call('INCR', turns) % 4 == 0 then
  for index = queues, 2, -1 do
    local head = redis.call('LINDEX', KEYS[index], 0)
    local since = head and redis.call('HGET', 'rq:job:' .. head, 'enqueued_at')
    if since and since < ARGV[7] and taken < most then take(index, taken + 1) end
  end
end
redis.call('EXPIRE', turns, 3600)
for index = 1, queues do
  local held = take(index, most)
  -- Of those behind so many, nobody knows yet: they are looked at when the first is free.
  if held < MOST_HELD then left = left + redis.call('LLEN', KEYS[index]) - held end
end

if taken > 0 then
  redis.call('EXPIRE', executions_key, ttl + 60)
  redis.call('HSET', worker_key, 'state', 'busy')
end
if left > 0 and redis.call('LLEN', bell) == 0 then redis.call('RPUSH', bell, 1) end
found[1] = left
if first_free then found[2] = math.ceil(first_free * 1000) end
return found
