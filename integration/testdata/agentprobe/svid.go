package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// revealSVID writes this agent's SVID with its key to FILE, as a program that was taken over would.
func revealSVID(ctx context.Context, args []string) error {
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return fmt.Errorf("this agent's SVID: %w", err)
	}
	defer source.Close()
	svid, err := source.GetX509SVID()
	if err != nil {
		return err
	}
	var out bytes.Buffer
	for _, c := range svid.Certificates {
		_ = pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
	key, err := x509.MarshalPKCS8PrivateKey(svid.PrivateKey)
	if err != nil {
		return err
	}
	_ = pem.Encode(&out, &pem.Block{Type: "PRIVATE KEY", Bytes: key})
	// Whole or not at all: somebody waits for it.
	if err := os.WriteFile(args[0]+".new", out.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Rename(args[0]+".new", args[0])
}
