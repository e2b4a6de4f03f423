/**
 * `node --import skew.ts`: the wall clock of this process is set by messages, `{ "setClock": milliseconds off }`. `performance.now` and the
 * timers of Node go on as before, as they do when somebody sets a machine's clock.
 */
const realNow = Date.now
let offMs = 0

Date.now = () => realNow() + offMs

process.on("message", (message) => {
  if (typeof message === "object" && message !== null && "setClock" in message) offMs = Number(message.setClock)
})
