-- wrk's requests that register equipment, each with a code of its own:
--   wrk ... -s register.lua URL -- PREFIX VESSEL [keys]
-- PREFIX makes the codes of one run; with `keys` every request carries an Idempotency-Key, too.
local prefix, with_keys
local number = 0

function init(args)
   prefix = args[1] .. "-"
   with_keys = args[3] == "keys"
   wrk.method = "POST"
   wrk.path = "/v1/vessels/" .. args[2] .. "/equipment"
   wrk.headers["Content-Type"] = "application/json"
end

function request()
   number = number + 1
   local code = prefix .. number
   if with_keys then
      wrk.headers["Idempotency-Key"] = code
   end
   return wrk.format(nil, nil, nil,
      '{"code":"' .. code .. '","name":"PH 1ST STAGE SCRUBBER INLET","location":"23-1ST STAGE COMPRESSION"}')
end
