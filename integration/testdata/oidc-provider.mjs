// An OpenID provider that isn't ours (npm oidc-provider), for the tests. It signs in whoever fills in its
// development forms; the name that is typed decides the groups.
//
//   node oidc-provider.mjs PORT CERT KEY CLIENT_ID MODULES
import { createServer } from 'node:https';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';
import { generateKeyPairSync, randomBytes } from 'node:crypto';

const [port, cert, key, clientId, modules] = process.argv.slice(2);
const require = createRequire(modules + '/');
const { default: Provider } = await import(pathToFileURL(require.resolve('oidc-provider')));

const groups = { alice: ['analysts'], bob: ['support'], oscar: ['operators'] };
const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
const issuer = `https://127.0.0.1:${port}`;

const provider = new Provider(issuer, {
  clients: [{
    client_id: clientId,
    application_type: 'native',
    token_endpoint_auth_method: 'none',
    grant_types: ['authorization_code'],
    response_types: ['code'],
    redirect_uris: ['http://127.0.0.1/callback'],
  }],
  jwks: { keys: [{ ...privateKey.export({ format: 'jwk' }), alg: 'RS256', use: 'sig', kid: 'test-1' }] },
  cookies: { keys: [randomBytes(32).toString('hex')] },
  claims: { openid: ['sub', 'sid', 'auth_time'], groups: ['groups'] },
  scopes: ['openid', 'groups'],
  conformIdTokenClaims: false,
  pkce: { required: () => true },
  ttl: { IdToken: 3600, AccessToken: 300, AuthorizationCode: 60, Session: 3600, Interaction: 600, Grant: 3600 },
  features: { devInteractions: { enabled: true } },
  async findAccount(_ctx, id) {
    return { accountId: id, claims: async () => ({ sub: id, groups: groups[id] ?? [] }) };
  },
});
provider.on('server_error', (_ctx, err) => console.error(err));
createServer({ cert: readFileSync(cert), key: readFileSync(key) }, provider.callback())
  .listen(Number(port), '127.0.0.1', () => console.log('ready'));
