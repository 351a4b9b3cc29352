// The same loop in Node: amqplib and undici.
const amqp = require("amqplib");
const { Pool } = require("undici");

async function main() {
  const url = new URL(process.env.BENCH_URL);
  const prefetch = Number(process.env.BENCH_PREFETCH);
  const pool = new Pool(url.origin, { connections: prefetch, pipelining: 1 });
  const connection = await amqp.connect(process.env.BENCH_AMQP_URL);
  const channel = await connection.createChannel();
  const replies = await connection.createConfirmChannel();
  const headers = { "content-type": "application/json", authorization: "Bearer benchmark" };
  await channel.prefetch(prefetch);

  async function handle(request) {
    const { properties } = request;
    const answer = await pool.request({ path: url.pathname, method: "POST", headers, body: request.content });
    await answer.body.arrayBuffer();
    const reply = JSON.stringify({ requestId: properties.messageId, httpStatus: answer.statusCode });
    await new Promise((resolve, reject) =>
      replies.sendToQueue(
        properties.replyTo,
        Buffer.from(reply),
        { persistent: true, contentType: "application/json", correlationId: properties.correlationId },
        (error) => (error ? reject(error) : resolve()),
      ),
    );
    channel.ack(request);
  }

  await channel.consume(process.env.BENCH_QUEUE, handle);
}

main();
