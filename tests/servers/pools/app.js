// A server that is connected to Redis before it listens; its client connects again by itself.
const http = require("node:http");
const { createClient } = require("redis");

const client = createClient({ socket: { host: "127.0.0.1", port: Number(process.env.REDIS_PORT) } });
// Without a listener, an error of the connection would end the process.
client.on("error", (error) => console.error(error.message));

const server = http.createServer(async (request, response) => {
  try {
    response.end(`${await client.get("visits")} visits\n`);
  } catch (error) {
    response.writeHead(503).end(`${error.message}\n`);
  }
});
client.connect().then(() => server.listen(Number(process.env.PORT), "127.0.0.1"));
