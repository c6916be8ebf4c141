// Package login is the session helper of `deputy login`: it signs a user in at an OpenID provider, keeps
// the login key, and signs what the user allows.
//
// The key is made in the helper and never leaves its memory. Its RFC 7638 thumbprint is the nonce of the
// sign-in, so the provider's ID token vouches for it, and grants that it signs need no trust in the
// broker. The helper is not dumpable, and serves only processes of its own uid that descend from the
// login session (the process that ran `deputy login`) and that the issuer places outside every agent: an
// agent, or an orphan of one, can't have anything signed.
//
// Sign-in is authorization code with PKCE S256 (RFC 7636) on a loopback redirect (RFC 8252), state
// checked, iss of the answer checked where it is there (RFC 9207).
package login
