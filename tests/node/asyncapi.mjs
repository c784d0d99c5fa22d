// What the official parser has to say about the AsyncAPI document that comes in: prints its diagnostics.
import { text } from 'node:stream/consumers'
import { Parser } from '@asyncapi/parser'

const { document, diagnostics } = await new Parser().parse(await text(process.stdin))
const operations = document?.operations().all().map((operation) => ({
  id: operation.id(),
  action: operation.action(),
  channels: operation.channels().all().map((channel) => channel.id()),
  messages: operation.messages().all().map((message) => message.id()),
}))
console.log(JSON.stringify({ operations, diagnostics }))
