package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/spf13/cobra"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/idp"
)

const maxKeyList = 4 << 20

func newAuditKeysCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keys",
		Short: "Keep the operator's list of public keys",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(newAuditKeysFetchCommand())
	return cmd
}

func newAuditKeysFetchCommand() *cobra.Command {
	var list, ca string
	cmd := &cobra.Command{
		Use:   "fetch [flags] --keys FILE",
		Short: "Put the identity providers' keys of today into the list",
		Long: "Fetches the keys (JWKS) of each identity provider on the list from the provider itself and adds them. Earlier ones\n" +
			"stay: sign-ins that they signed are in the logs. Run it whenever a provider has changed its keys, so that `deputy audit\n" +
			"verify` rests on them and not on those that the log holds. It believes the provider's TLS certificate, nothing else.",
		Example: "  deputy audit keys fetch --keys audit-keys.json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return auditKeysFetch(cmd.Context(), cmd.OutOrStdout(), list, ca)
		},
	}
	cmd.Flags().StringVar(&list, "keys", "", "the operator's list of public keys (`file` audit-keys.json; required)")
	cmd.Flags().StringVar(&ca, "ca-file", "", "`file` with the CA of the providers' certificates (default: the system's)")
	requireFlags(cmd, "keys")
	return cmd
}

func auditKeysFetch(ctx context.Context, out io.Writer, list, ca string) error {
	raw, err := readSmall(list, maxKeyList)
	if err != nil {
		return fmt.Errorf("reading the list of keys: %w", err)
	}
	keys, err := audit.ParseKeys(raw)
	if err != nil {
		return fmt.Errorf("%s: %w", list, err)
	}
	if len(keys.IdentityProviders) == 0 {
		return fmt.Errorf("%s names no identity provider; add its issuer under identity_providers first", list)
	}
	client, err := httpClient(ca)
	if err != nil {
		return err
	}
	for i := range keys.IdentityProviders {
		p := &keys.IdentityProviders[i]
		var document []byte
		// What it is asked for here is only its keys: audience and algorithms are for tokens.
		v, err := idp.New(idp.Config{
			Providers: []idp.Provider{{Issuer: p.Issuer, ClientID: "none", Algorithms: []string{"ES256", "ES384", "RS256", "PS256", "EdDSA"}, Client: client}},
			OnKeys: func(_ context.Context, _ string, doc []byte) error {
				document = bytes.Clone(doc)
				return nil
			},
		})
		if err != nil {
			return err
		}
		if err := v.Fetch(ctx); err != nil {
			if stranger := new(x509.UnknownAuthorityError); errors.As(err, stranger) {
				return fmt.Errorf("fetching the keys of %s: %w; if a CA of your own signs its certificate, name it with --ca-file", p.Issuer, err)
			}
			return fmt.Errorf("fetching the keys of %s: %w", p.Issuer, err)
		}
		all, added, err := mergeKeys(p.Keys, document)
		if err != nil {
			return fmt.Errorf("the keys of %s: %w", p.Issuer, err)
		}
		p.Keys = all
		if _, err := fmt.Fprintf(out, "%s: %s added; earlier ones stay\n", printableText(p.Issuer), counted(added, "key")); err != nil {
			return err
		}
	}
	return replaceKeyList(list, keys)
}

// mergeKeys adds the public keys of a fetched document to those that are there.
func mergeKeys(have, fetched []byte) (merged json.RawMessage, added int, err error) {
	var set, fresh jose.JSONWebKeySet
	if have != nil {
		if err := json.Unmarshal(have, &set); err != nil {
			return nil, 0, err
		}
	}
	if err := json.Unmarshal(fetched, &fresh); err != nil {
		return nil, 0, err
	}
	// A key is the same under the same name only: tokens name it.
	known := map[string]bool{}
	name := func(k jose.JSONWebKey) (string, error) {
		print, err := k.Thumbprint(crypto.SHA256)
		return k.KeyID + "\x00" + string(print), err
	}
	for _, k := range set.Keys {
		n, err := name(k)
		if err != nil {
			return nil, 0, err
		}
		known[n] = true
	}
	for _, k := range fresh.Keys {
		if !k.IsPublic() || !k.Valid() {
			return nil, 0, errors.New("it publishes something that is no public key")
		}
		n, err := name(k)
		if err != nil {
			return nil, 0, err
		}
		if !known[n] {
			known[n] = true
			set.Keys = append(set.Keys, k)
			added++
		}
	}
	merged, err = json.Marshal(set)
	return merged, added, err
}

// replaceKeyList writes the list so that the old or the new one is there, whole, with the same mode.
func replaceKeyList(path string, keys *audit.Keys) error {
	packed, err := json.Marshal(keys)
	if err != nil {
		return err
	}
	var raw bytes.Buffer
	if err := json.Indent(&raw, packed, "", "  "); err != nil {
		return err
	}
	raw.WriteByte('\n')
	if _, err := audit.ParseKeys(raw.Bytes()); err != nil {
		return fmt.Errorf("the new list: %w", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".new-*")
	if err != nil {
		return fmt.Errorf("writing the list of keys: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(raw.Bytes())
	if err = errors.Join(err, f.Chmod(info.Mode().Perm()), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("writing the list of keys: %w", err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("writing the list of keys: %w", err)
	}
	return nil
}
