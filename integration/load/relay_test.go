//go:build bench

package load_test

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/deputymesh/deputy/internal/testmesh"
)

// nginxBefore starts an nginx that ends TLS with a certificate and its key (files), as the plainest relay in front of a service at a URL. It returns its
// own URL. What location adds are nginx's directives.
func (b *bench) nginxBefore(upstream, cert, key, location string) string {
	b.t.Helper()
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(testmesh.FreePorts(b.t, 1)))
	scheme, host, _ := strings.Cut(upstream, "://")
	conf := b.file("relay.conf", fmt.Sprintf(`daemon off; master_process off; pid %[1]s/relay.pid; error_log /dev/null;
events { worker_connections 512; }
http {
  access_log off;
  client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/fastcgi; uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;
  keepalive_requests 1000000;
  upstream service { server %[3]s; keepalive 64; keepalive_requests 1000000; }
  server {
    listen %[4]s ssl;
    ssl_certificate %[5]s; ssl_certificate_key %[6]s;
    location / { proxy_pass %[2]s://service; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_max_temp_file_size 0; %[7]s }
  }
}
`, b.t.TempDir(), scheme, host, address, cert, key, location))
	b.serveAs(nil, nil, address, "/usr/sbin/nginx", "-e", "/dev/null", "-c", conf)
	return "https://" + address
}

// perSecond is how often a second so many clients do something, each as often as it can.
func (b *bench) perSecond(clients int, once func() error) float64 {
	ctx, cancel := context.WithTimeout(context.Background(), b.seconds)
	defer cancel()
	counts := make([]int, clients)
	var wg sync.WaitGroup
	began := time.Now()
	for i := range clients {
		wg.Go(func() {
			for ctx.Err() == nil {
				if err := once(); err != nil {
					b.t.Error(err)
					return
				}
				counts[i]++
			}
		})
	}
	wg.Wait()
	n := 0
	for _, c := range counts {
		n += c
	}
	return float64(n) / time.Since(began).Seconds()
}
