// What a browser's EventSource receives: a line of JSON for each event.
//
// node --experimental-eventsource event_source.mjs GATEWAY AFTER COUNT TYPE...
const [gateway, after, count, ...types] = process.argv.slice(2)
let last = after
let left = Number(count)

function open() {
  const source = new EventSource(`${gateway}/v1/events/stream?after=${last}`)
  for (const type of types) {
    source.addEventListener(type, ({ lastEventId, data }) => {
      last = lastEventId
      console.log(JSON.stringify({ type, lastEventId, data }))
      if (--left === 0) process.exit()
    })
  }
  // It comes back by itself after a lost connection, and gives up where it is answered anything but a stream.
  source.onerror = () => {
    if (source.readyState === EventSource.CLOSED) setTimeout(open, 200)
  }
}

setInterval(() => {}, 1000) // Node would end while EventSource waits to come back
open()
