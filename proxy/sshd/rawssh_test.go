package sshd_test

import (
	"bufio"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// Messages of SSH (RFC 4250 §4.1.2), as far as they are sent here by hand.
const (
	msgServiceRequest, msgServiceAccept  = 5, 6
	msgKexInit, msgNewKeys               = 20, 21
	msgKexECDHInit, msgKexECDHReply      = 30, 31
	msgAuthRequest, msgAuthSuccess       = 50, 52
	msgGlobalRequest                     = 80
	msgChannelOpen, msgChannelConfirm    = 90, 91
	msgWindowAdjust, msgChannelData      = 93, 94
	msgChannelEOF, msgChannelClose       = 96, 97
	msgChannelRequest                    = 98
	msgChannelSuccess, msgChannelFailure = 99, 100
)

// raw is one end of SSH that sends what no library would: packets are bytes here. It speaks curve25519-sha256, ssh-ed25519 and
// aes128-gcm, and never exchanges keys twice.
type raw struct {
	conn    net.Conn
	r       *bufio.Reader
	in, out *gcm // nil before keys are in use
	writing sync.Mutex
}

type gcm struct {
	cipher.AEAD
	iv [12]byte
}

func (g *gcm) next() []byte {
	iv := g.iv
	binary.BigEndian.PutUint64(g.iv[4:], binary.BigEndian.Uint64(g.iv[4:])+1)
	return iv[:]
}

func (c *raw) send(packet []byte) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	block, counted := 8, 5
	if c.out != nil {
		block, counted = 16, 1
	}
	padding := block - (len(packet)+counted)%block
	if padding < 4 {
		padding += block
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(1+len(packet)+padding))
	b = append(append(append(b, byte(padding)), packet...), make([]byte, padding)...)
	if c.out != nil {
		b = append(b[:4:4], c.out.Seal(nil, c.out.next(), b[4:], b[:4])...)
	}
	_, err := c.conn.Write(b)
	return err
}

func (c *raw) receive() ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint32(head[:]))
	if n < 2 || n > 1<<20 {
		return nil, fmt.Errorf("a packet of %d bytes", n)
	}
	if c.in != nil {
		n += c.in.Overhead()
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(c.r, b); err != nil {
		return nil, err
	}
	if c.in != nil {
		var err error
		if b, err = c.in.Open(nil, c.in.next(), b, head[:]); err != nil {
			return nil, err
		}
	}
	return b[1 : len(b)-int(b[0])], nil
}

// await reads up to a message of one of these kinds.
func (c *raw) await(kinds ...byte) ([]byte, error) {
	for {
		p, err := c.receive()
		if err != nil {
			return nil, err
		}
		for _, k := range kinds {
			if len(p) > 0 && p[0] == k {
				return p, nil
			}
		}
	}
}

func text(s string) []byte { return append(binary.BigEndian.AppendUint32(nil, uint32(len(s))), s...) }

func message(kind byte, parts ...any) []byte {
	b := []byte{kind}
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			b = append(b, text(p)...)
		case int:
			b = binary.BigEndian.AppendUint32(b, uint32(p))
		case bool:
			if p {
				b = append(b, 1)
			} else {
				b = append(b, 0)
			}
		case []byte:
			b = append(b, p...)
		default:
			panic(fmt.Sprintf("%T", p))
		}
	}
	return b
}

func kexInit() []byte {
	b := append([]byte{msgKexInit}, make([]byte, 16)...)
	_, _ = rand.Read(b[1:])
	for _, list := range []string{"curve25519-sha256", "ssh-ed25519", "aes128-gcm@openssh.com", "aes128-gcm@openssh.com", "hmac-sha2-256", "hmac-sha2-256", "none", "none", "", ""} {
		b = append(b, text(list)...)
	}
	return append(b, 0, 0, 0, 0, 0)
}

// rawSSH does the handshake of either side; host is the server's key, nil for a client, which believes any.
func rawSSH(conn net.Conn, host ssh.Signer) (*raw, error) {
	const version = "SSH-2.0-raw"
	c := &raw{conn: conn, r: bufio.NewReader(conn)}
	if _, err := io.WriteString(conn, version+"\r\n"); err != nil {
		return nil, err
	}
	theirs, err := c.r.ReadString('\n')
	if err != nil {
		return nil, err
	}
	theirs = strings.TrimRight(theirs, "\r\n")
	mine := kexInit()
	if err := c.send(mine); err != nil {
		return nil, err
	}
	other, err := c.await(msgKexInit)
	if err != nil {
		return nil, err
	}
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	point := string(key.PublicKey().Bytes())
	var hashed, secret []byte
	if host != nil {
		p, err := c.await(msgKexECDHInit)
		if err != nil {
			return nil, err
		}
		if hashed, secret, err = exchange(key, p[5:], theirs, version, other, mine, host.PublicKey().Marshal(), string(p[5:]), point); err != nil {
			return nil, err
		}
		sig, err := host.Sign(rand.Reader, hashed)
		if err != nil {
			return nil, err
		}
		if err := c.send(message(msgKexECDHReply, string(host.PublicKey().Marshal()), point, string(ssh.Marshal(sig)))); err != nil {
			return nil, err
		}
	} else {
		if err := c.send(message(msgKexECDHInit, point)); err != nil {
			return nil, err
		}
		p, err := c.await(msgKexECDHReply)
		if err != nil {
			return nil, err
		}
		var reply struct{ Key, Point, Signature string }
		if err := ssh.Unmarshal(append([]byte{}, p[1:]...), &reply); err != nil {
			return nil, err
		}
		if hashed, secret, err = exchange(key, []byte(reply.Point), version, theirs, mine, other, []byte(reply.Key), point, reply.Point); err != nil {
			return nil, err
		}
	}
	if err := c.send([]byte{msgNewKeys}); err != nil {
		return nil, err
	}
	if _, err := c.await(msgNewKeys); err != nil {
		return nil, err
	}
	toServer, err := newGCM(secret, hashed, "A", "C")
	if err != nil {
		return nil, err
	}
	toClient, err := newGCM(secret, hashed, "B", "D")
	if err != nil {
		return nil, err
	}
	c.in, c.out = toServer, toClient
	if host == nil {
		c.in, c.out = toClient, toServer
	}
	return c, nil
}

// exchange is the hash of RFC 5656 §4, and the shared secret as an mpint.
func exchange(key *ecdh.PrivateKey, peer []byte, vClient, vServer string, iClient, iServer, host []byte, qClient, qServer string) (hash, secret []byte, err error) {
	pub, err := ecdh.X25519().NewPublicKey(peer)
	if err != nil {
		return nil, nil, err
	}
	k, err := key.ECDH(pub)
	if err != nil {
		return nil, nil, err
	}
	secret = ssh.Marshal(struct{ K *big.Int }{new(big.Int).SetBytes(k)})
	h := sha256.New()
	for _, s := range []string{vClient, vServer, string(iClient), string(iServer), string(host), qClient, qServer} {
		h.Write(text(s))
	}
	h.Write(secret)
	return h.Sum(nil), secret, nil
}

func newGCM(secret, hash []byte, iv, key string) (*gcm, error) {
	derive := func(letter string) []byte {
		sum := sha256.Sum256([]byte(string(secret) + string(hash) + letter + string(hash)))
		return sum[:]
	}
	block, err := aes.NewCipher(derive(key)[:16])
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	g := &gcm{AEAD: aead}
	copy(g.iv[:], derive(iv))
	return g, nil
}

// rawAgent is an agent of the world's at the proxy, ready to open channels.
func (w *world) rawAgent() *raw {
	w.t.Helper()
	conn, _, err := present(w.addr, w.tls(preface), goodCredential)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	c, err := rawSSH(conn, nil)
	if err == nil {
		err = c.send(message(msgServiceRequest, "ssh-userauth"))
	}
	if err == nil {
		_, err = c.await(msgServiceAccept)
	}
	if err == nil {
		err = c.send(message(msgAuthRequest, "deputy", "ssh-connection", "none"))
	}
	if err == nil {
		_, err = c.await(msgAuthSuccess)
	}
	if err != nil {
		w.t.Fatalf("a raw agent: %v", err)
	}
	return c
}

// rawTarget serves each connection that the proxy makes by serve, after its authentication. The returned key is its host key.
func rawTarget(t testing.TB, serve func(*raw) error) (address string, host ssh.Signer) {
	t.Helper()
	host = signer(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	t.Cleanup(func() {
		_ = l.Close()
		serving.Wait()
	})
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(time.Minute))
				c, err := rawSSH(conn, host)
				if err == nil {
					_, err = c.await(msgServiceRequest)
				}
				if err == nil {
					err = c.send(message(msgServiceAccept, "ssh-userauth"))
				}
				if err == nil {
					_, err = c.await(msgAuthRequest)
				}
				if err == nil {
					err = c.send([]byte{msgAuthSuccess})
				}
				if err == nil {
					err = serve(c)
				}
				if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
					t.Logf("the raw target: %v", err)
				}
			})
		}
	})
	return l.Addr().String(), host
}
