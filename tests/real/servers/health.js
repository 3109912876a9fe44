// grpc.health.v1 by grpc-js: `health.js PORT DELAY_MS`.
//
// Says how many calls it has taken, every hundred. SIGTERM drains: GOAWAY, calls under way end, then the process does.
'use strict';

const grpc = require('@grpc/grpc-js');
const { HealthImplementation } = require('grpc-health-check');

const [port, delay] = process.argv.slice(2).map(Number);
const server = new grpc.Server();
const health = new HealthImplementation({ '': 'SERVING' });

let calls = 0;
// Counts the calls, and takes its time over each.
const counting = (handler) => (call, done) => {
  calls += 1;
  if (calls % 100 === 0) console.log(`${calls} calls`);
  if (delay) setTimeout(() => handler(call, done), delay);
  else handler(call, done);
};
health.addToServer({
  addService: (service, handlers) =>
    server.addService(service, { ...handlers, check: counting(handlers.check) }),
});

server.bindAsync(`127.0.0.1:${port}`, grpc.ServerCredentials.createInsecure(), (error) => {
  if (error) throw error;
});

process.on('SIGTERM', () => {
  server.tryShutdown((error) => process.exit(error ? 1 : 0));
});
