package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/deputymesh/deputy/internal/signin"
)

// sampleSignInConfig is sample-signin.yaml.
type sampleSignInConfig struct {
	Listen   string       `yaml:"listen"`
	Issuer   string       `yaml:"issuer"`
	ClientID string       `yaml:"client_id"`
	Cert     string       `yaml:"cert"`
	Key      string       `yaml:"key"`
	Users    []sampleUser `yaml:"users"`
}

type sampleUser struct {
	Name     string   `yaml:"name"`
	Subject  string   `yaml:"subject"`
	Password string   `yaml:"password"`
	Email    string   `yaml:"email"`
	Groups   []string `yaml:"groups"`
}

func (c *sampleSignInConfig) check() error {
	host, _, err := net.SplitHostPort(c.Listen)
	if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
		return fieldError("$.listen", "a loopback address such as 127.0.0.1:7409 is expected; the sample sign-in server never leaves this machine")
	}
	if c.ClientID == "" {
		return fieldError("$.client_id", "a name is expected, such as deputy-cli")
	}
	for i, u := range c.Users {
		if u.Name == "" || u.Subject == "" || len(u.Password) < 8 {
			return fieldError(fmt.Sprintf("$.users[%d]", i), "name, subject and a password of at least 8 characters are expected")
		}
	}
	return nil
}

func newSampleSignInCommand() *cobra.Command {
	var config string
	cmd := &cobra.Command{
		Use:   "sample-signin --config sample-signin.yaml",
		Short: "Run the sample sign-in server of the demo (loopback only, sample users)",
		Long: "An OpenID provider for trying things: users and their passwords stand in its configuration, which\n" +
			"`deputy init --sample-user` writes. It refuses to listen anywhere but on loopback.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(config, (*sampleSignInConfig).check)
			if err != nil {
				return err
			}
			cfg.Cert, cfg.Key = beside(config, cfg.Cert), beside(config, cfg.Key)
			if err := checkPrivate(cfg.Key); err != nil {
				return fmt.Errorf("starting the sample sign-in server: %w", err)
			}
			l, err := (&net.ListenConfig{}).Listen(cmd.Context(), "tcp", cfg.Listen)
			if err != nil {
				return fmt.Errorf("starting the sample sign-in server: %w", portTaken(err))
			}
			return cfg.serve(cmd.Context(), l)
		},
	}
	cmd.Flags().StringVar(&config, "config", "", "configuration `file` (deputy init --sample-user writes one; required)")
	requireFlags(cmd, "config")
	return cmd
}

// serve runs the sign-in server on l until ctx ends.
func (c *sampleSignInConfig) serve(ctx context.Context, l net.Listener) error {
	defer l.Close()
	cert, err := tls.LoadX509KeyPair(c.Cert, c.Key)
	if err != nil {
		return fmt.Errorf("sample sign-in server: %w", err)
	}
	users := make([]signin.User, len(c.Users))
	for i, u := range c.Users {
		users[i] = signin.User(u)
	}
	handler, err := signin.New(signin.Config{Issuer: c.Issuer, ClientID: c.ClientID, Users: users})
	if err != nil {
		return err
	}
	slog.InfoContext(ctx, "ready", "role", "sample-signin")
	return serveHTTP(ctx, tls.NewListener(l, &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}}), handler)
}

// serveHTTP serves until ctx ends, then gives requests under way a second.
func serveHTTP(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      60 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          log.New(io.Discard, "", 0), // what a stranger sends isn't logged line by line
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = srv.Shutdown(grace)
	})
	err := srv.Serve(l)
	if !stop() {
		<-stopped
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
