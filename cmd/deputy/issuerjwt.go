package main

import (
	"crypto/ecdsa"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/issuer"
	"github.com/deputymesh/deputy/issuer/ca"
)

// authority reads the key of JWT-SVIDs and the keys of their bundle. Without a configuration both are nil.
func (c *issuerJWTConfig) authority(config string, td spiffeid.TrustDomain) (*ca.JWTAuthority, []*ecdsa.PublicKey, error) {
	if c == nil {
		return nil, nil, nil
	}
	key, err := readPrivateKey(beside(config, c.Key))
	if err != nil {
		return nil, nil, fmt.Errorf("reading the key of JWT-SVIDs: %w", err)
	}
	authority, err := ca.NewJWTAuthority(ca.JWTConfig{TrustDomain: td, Key: key, Mesh: c.Mesh})
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", config, err)
	}
	keys, err := c.keys(config, authority)
	return authority, keys, err
}

func (c *issuerJWTConfig) keys(config string, authority *ca.JWTAuthority) ([]*ecdsa.PublicKey, error) {
	path := beside(config, c.Bundle)
	raw, err := readBounded(path)
	if err != nil {
		return nil, fmt.Errorf("reading the JWT bundle: %w", err)
	}
	keys, err := ca.DecodeJWTKeys(raw)
	if err != nil {
		return nil, fmt.Errorf("JWT bundle %s: %w", path, err)
	}
	if !keys[0].Equal(authority.PublicKey()) {
		return nil, fmt.Errorf("JWT bundle %s: the first key isn't the one in use; add the next one after it, and restart with its private key once everybody has it", path)
	}
	return keys, nil
}

// reload reads the bundle again and pushes it.
func (c *issuerJWTConfig) reload(config string, role *issuer.Issuer, authority *ca.JWTAuthority) error {
	if c == nil {
		return nil
	}
	keys, err := c.keys(config, authority)
	if err != nil {
		return err
	}
	return role.SetJWTBundle(keys...)
}
