// A GraphQL server as its own project makes them (graphql-js, graphql-http). Arguments: where the packages are, the port, a log.
// The log has a line for each field of a root type that ran: for which request, and the field's own name.
import { createRequire } from "node:module";
import { appendFileSync } from "node:fs";
import { createServer } from "node:http";
const [, , root, port, log] = process.argv;
const require = createRequire(root + "/");
const { buildSchema } = require("graphql"), { createHandler } = require("graphql-http/lib/use/http");

const schema = buildSchema(`
  interface Orders { orders(n: Int, filter: Filter): [Order] }
  input Filter { text: String, any: [String], of: Filter }
  type Order { id: ID, secret: String, lines(n: Int): [Order] }
  type Query implements Orders { orders(n: Int, filter: Filter): [Order], me: Order, secret(of: String): String }
  type Mutation { addOrder(name: String): Order, drop(name: String): Boolean }
`);
const order = { id: 1, secret: "of an order", lines: () => [] };
const answers = { orders: () => [order], me: () => order, secret: () => "of all", addOrder: () => order, drop: () => true };
const rootValue = Object.fromEntries(Object.entries(answers).map(([field, answer]) => [field, (_, request) => {
  appendFileSync(log, `${request.id} ${field}\n`);
  return answer();
}]));

// A request's id is that of its record, which the proxy tells, and without the proxy what the client calls it.
function id({ headers }) {
  const chain = headers["deputy-chain"];
  return chain ? JSON.parse(Buffer.from(chain.split(".")[1], "base64url")).record : headers["x-direct"];
}
// It doesn't validate documents, so it runs more of them than others would.
const handler = createHandler({ schema, rootValue, validate: () => [], context: ({ raw }) => ({ id: id(raw) }) });
createServer((q, a) => (q.url.startsWith("/graphql") ? handler(q, a) : a.writeHead(404).end())).listen(Number(port), "127.0.0.1");
