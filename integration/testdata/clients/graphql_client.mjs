// Sends requests one by one. Arguments: the service's URL, a file with the requests (JSON). It prints a line of JSON for each: status, the record's id, the body.
import { readFileSync } from "node:fs";
import { Agent, request } from "node:http";
const [, , url, file] = process.argv;
const agent = new Agent({ keepAlive: true, maxSockets: 1 });

function send({ method, query, type, body }, n) {
  return new Promise((resolve, reject) => {
    const data = Buffer.from(body ?? "", "base64");
    const headers = { "X-Direct": `direct-${n}`, ...(type && { "Content-Type": type }), ...(method === "POST" && { "Content-Length": data.length }) };
    const q = request(url + "/graphql" + query, { method, headers, agent }, (a) => {
      let text = "";
      a.setEncoding("utf8").on("data", (part) => (text += part)).on("end", () => resolve({ status: a.statusCode, record: a.headers["deputy-record"] ?? "", body: text }));
    });
    q.on("error", reject).end(data);
  });
}
const requests = JSON.parse(readFileSync(file));
for (let n = 0; n < requests.length; n++) console.log(JSON.stringify(await send(requests[n], n)));
agent.destroy();
