package testkube

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"os"

	"github.com/deputymesh/deputy/internal/testca"
)

// pair is a certificate and its key, as files.
type pair struct{ cert, key string }

// keys are the cluster's: an authority for each edge, so that a certificate opens one door.
type keys struct {
	etcd, server, node, admin, proxy, toNode     pair
	etcdCA, serverCA, nodeCA, clientCA, toNodeCA string
	accounts                                     string
}

func (c *Cluster) makeKeys() keys {
	var k keys
	k.etcd, k.etcdCA = c.serverPair("etcd")
	k.server, k.serverCA = c.serverPair("server")
	k.node, k.nodeCA = c.serverPair("node")
	clients, toNode := testca.New(c.t, "clients.test"), testca.New(c.t, "to-node.test")
	k.clientCA, k.toNodeCA = c.pem("clients.ca", "CERTIFICATE", clients.Certificate().Raw), c.pem("to-node.ca", "CERTIFICATE", toNode.Certificate().Raw)
	k.admin = c.clientPair(clients, "admin", "system:masters")
	k.proxy = c.clientPair(clients, ProxyUser)
	k.toNode = c.clientPair(toNode, "kube-apiserver")
	// The one that the API server reads in SEC 1's form only.
	accounts, err := x509.MarshalECPrivateKey(testca.NewKey(c.t))
	if err != nil {
		c.t.Fatal(err)
	}
	k.accounts = c.pem("accounts.key", "EC PRIVATE KEY", accounts)
	return k
}

func (c *Cluster) serverPair(name string) (pair, string) {
	dir := c.path(name + ".pki")
	if err := os.Mkdir(dir, 0o700); err != nil {
		c.t.Fatal(err)
	}
	cert, key, ca := testca.New(c.t, name+".test").Server(dir, "127.0.0.1", "localhost")
	return pair{cert, key}, ca
}

// clientPair names a user and its groups as Kubernetes reads them from a certificate.
func (c *Cluster) clientPair(ca *testca.CA, user string, groups ...string) pair {
	svid := ca.SVID(ca.ID("/client"), testca.URIs(), func(x *x509.Certificate) {
		x.Subject = pkix.Name{CommonName: user, Organization: groups}
	})
	return pair{c.pem(user+".crt", "CERTIFICATE", svid.Certificates[0].Raw), c.key(user+".key", svid.PrivateKey)}
}

func (c *Cluster) key(name string, key any) string {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		c.t.Fatal(err)
	}
	return c.pem(name, "PRIVATE KEY", der)
}

func (c *Cluster) pem(name, kind string, der []byte) string {
	return c.write(name, string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})))
}
