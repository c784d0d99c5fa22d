-- wrk's requests that register equipment, each with a code of its own:
--   wrk ... -s register.lua URL -- PREFIX VESSEL [keys]
-- PREFIX, which no other run may use, makes the codes unique; with `keys` every request carries an
-- Idempotency-Key, too. The codes are scattered, as those of a fleet are: no index has them in one place.
local prefix, with_keys
local number = 0

function init(args)
   prefix = args[1]
   with_keys = args[3] == "keys"
   wrk.method = "POST"
   wrk.path = "/v1/vessels/" .. args[2] .. "/equipment"
   wrk.headers["Content-Type"] = "application/json"
end

function request()
   number = number + 1
   -- A prime, so that a million of them differ.
   local code = string.format("%06d-%s", number * 618041 % 1000000, prefix)
   if with_keys then
      wrk.headers["Idempotency-Key"] = code
   end
   return wrk.format(nil, nil, nil,
      '{"code":"' .. code .. '","name":"PH 1ST STAGE SCRUBBER INLET","location":"23-1ST STAGE COMPRESSION"}')
end
