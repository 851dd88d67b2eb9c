-- KEYS: the mark. ARGV: who asks, time to live.
-- Answer: 1 for the first who asks, also when it asks again because the answer got lost.
local value = redis.pcall('GET', KEYS[1])
if type(value) == 'table' then
  redis.call('DEL', KEYS[1])
  value = false
end
if not value then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  value = ARGV[1]
end
return value == ARGV[1] and '1' or '0'
