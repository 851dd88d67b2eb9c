-- KEYS: the meters. ARGV: now or '', lease; per meter: window, '1' if held.
-- Answer: junk; per meter: used, left.
local now, lease = now_ms(ARGV[1]), tonumber(ARGV[2])
local answer = {}
for i, key in ipairs(KEYS) do
  local m = load(key, ARGV[1 + 2 * i], ARGV[2 + 2 * i] == '1', now, lease)
  if m.is_changed then
    save(m, now, lease)
  end
  tell(answer, m, now, lease)
end
table.insert(answer, 1, junk)
return told(answer)
