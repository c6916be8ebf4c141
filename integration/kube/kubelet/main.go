// Command kubelet stands in for a kubelet in the tests: it registers a node with an API server, runs the containers of pods that are
// bound to that node as processes of this host, and answers exec, attach, port-forward and logs as a kubelet does, on Kubernetes' own
// streaming library: WebSocket and SPDY, terminals, sizes, exit codes.
//
// What it isn't: images are ignored (a container without a command sleeps), nothing is isolated or restarted, and a pod's ports are this
// host's on loopback. It runs commands for whoever holds a certificate of --client-ca, so that authority must be the test's own.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

func main() {
	kubeconfig := flag.String("kubeconfig", "", "how to reach the API server, as an administrator")
	name := flag.String("name", "", "the node's name")
	dir := flag.String("dir", "", "where pods have their folders")
	cert := flag.String("cert", "", "certificate to serve with")
	key := flag.String("key", "", "its key")
	clientCA := flag.String("client-ca", "", "authority of who may ask for anything: the API server's client certificate")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, *kubeconfig, *name, *dir, *cert, *key, *clientCA); err != nil && ctx.Err() == nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, kubeconfig, name, dir, cert, key, clientCA string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	config.QPS, config.Burst = 200, 400
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return err
	}
	pem, err := os.ReadFile(clientCA)
	if err != nil {
		return err
	}
	callers := x509.NewCertPool()
	if !callers.AppendCertsFromPEM(pem) {
		return errors.New("no certificate in " + clientCA)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	k := &kubelet{node: name, dir: dir, client: client, pods: map[string]*pod{}}
	defer k.sessions.kill()
	server := &http.Server{
		Handler: k.handler(), ReadHeaderTimeout: 10 * time.Second,
		TLSConfig: &tls.Config{
			MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair},
			ClientCAs: callers, ClientAuth: tls.RequireAndVerifyClientCert, NextProtos: []string{"http/1.1"},
		},
	}
	if err := k.register(ctx, l.Addr().(*net.TCPAddr).Port); err != nil {
		return err
	}
	go k.watch(ctx)
	context.AfterFunc(ctx, func() { _ = server.Close() })
	return server.ServeTLS(l, "", "")
}

func (k *kubelet) register(ctx context.Context, port int) error {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: k.node, Labels: map[string]string{corev1.LabelHostname: k.node}}}
	nodes := k.client.CoreV1().Nodes()
	node, err := nodes.Create(ctx, node, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		node, err = nodes.Get(ctx, k.node, metav1.GetOptions{})
	}
	if err != nil {
		return err
	}
	node.Status = corev1.NodeStatus{
		Addresses:       []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "127.0.0.1"}, {Type: corev1.NodeHostName, Address: k.node}},
		DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: int32(port)}},
		Conditions: []corev1.NodeCondition{{
			Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady", LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now(),
		}},
	}
	_, err = nodes.UpdateStatus(ctx, node, metav1.UpdateOptions{})
	return err
}
