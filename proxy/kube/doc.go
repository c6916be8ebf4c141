// Package kube is the engine for Kubernetes clusters.
//
// An agent connects with its SVID and gives its credential as the bearer token of each request (RFC 6750). Each request is read as the API server reads
// it, in one canonical form: verb, group, resource, subresource, namespace, name, and for exec the container and the command. It is decided by them,
// recorded, and sent on in that form under an account of the proxy's own, which impersonates the user at the root of the chain, the groups that
// stand for the user's roles, and the chain itself; so the cluster's RBAC decides about the user, and its audit log has the chain. The values of Secrets are masked in every answer, unless
// a policy reveals them.
//
// Begin with [Engine.ServeHTTP]; path.go says how a request is read, command.go what is decided, secrets.go what is masked, relay.go what goes on. Connections,
// sessions and the headers that are taken away are in proxy/internal/hop.
package kube
