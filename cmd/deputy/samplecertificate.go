package main

import (
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
)

// sampleCertificateLife is short: the certificate is for the demo and for tests.
const sampleCertificateLife = 7 * 24 * time.Hour

func newSampleCertificateCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "sample-certificate HOST...",
		Short: "Write server.pem, server.key and ca.pem for a sample server on this machine",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, hosts []string) error {
			return writeWebCertificate(dir, "sample", hosts, sampleCertificateLife)
		},
	}
	cmd.Flags().StringVar(&dir, "dir", ".", "the folder to write to")
	return cmd
}

// writeWebCertificate writes a server certificate under a CA of its own: server.pem, server.key, ca.pem.
func writeWebCertificate(dir, name string, hosts []string, life time.Duration) error {
	ca, leaf, key, err := selfSigned(name, hosts, life)
	if err != nil {
		return err
	}
	if err := writePrivateKey(filepath.Join(dir, "server.key"), key); err != nil {
		return err
	}
	if err := writeCertificates(filepath.Join(dir, "server.pem"), leaf); err != nil {
		return err
	}
	return writeCertificates(filepath.Join(dir, "ca.pem"), ca)
}
