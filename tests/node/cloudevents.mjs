// What the CloudEvents SDK for JavaScript reads: a line of JSON for each event.
//
// amqp URL QUEUE COUNT: messages of RabbitMQ in binary mode; the SDK has no AMQP binding, which is this prefix
//   in front of the attributes, and checks what it is given.
// json: events in JSON format, a line each, as the HTTP binding's structured mode carries them.
import { createInterface } from 'node:readline'
import amqplib from 'amqplib'
import { CloudEvent, HTTP } from 'cloudevents'

const PREFIX = 'cloudEvents_'
const print = (event) => console.log(JSON.stringify({ ...event }))

async function amqp(url, queue, count) {
  const connection = await amqplib.connect(url)
  const channel = await connection.createChannel()
  await channel.prefetch(count)
  await new Promise((resolve, reject) => {
    let left = count
    connection.on('error', reject)
    channel.consume(queue, ({ content, properties: { headers, contentType } }) => {
      const attributes = Object.entries(headers)
        .filter(([name]) => name.startsWith(PREFIX))
        .map(([name, value]) => [name.slice(PREFIX.length), value])
      try {
        const data = JSON.parse(content.toString())
        print(new CloudEvent({ ...Object.fromEntries(attributes), datacontenttype: contentType, data }))
      } catch (error) {
        reject(error)
      }
      if (--left === 0) resolve()
    }, { arguments: { 'x-stream-offset': 'first' } })
  })
  await connection.close()
}

async function json() {
  for await (const body of createInterface(process.stdin)) {
    print(HTTP.toEvent({ headers: { 'content-type': 'application/cloudevents+json' }, body }))
  }
}

const [mode, url, queue, count] = process.argv.slice(2)
await (mode === 'amqp' ? amqp(url, queue, Number(count)) : json())
