-- wrk's requests that read one of many:
--   wrk ... -s get.lua URL -- PATH COUNT
-- The %d of PATH, as of string.format, is replaced by a number below COUNT, another one for each request.
local path, count
local number = 0

function init(args)
   path = args[1]
   count = tonumber(args[2])
end

function request()
   -- A prime: all of them have their turn, and neighbours are not asked for together.
   number = (number + 618041) % count
   return wrk.format("GET", string.format(path, number))
end
