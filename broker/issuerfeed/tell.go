package issuerfeed

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/deputymesh/deputy/broker/state"
	"github.com/deputymesh/deputy/internal/feed"
	spawnv1 "github.com/deputymesh/deputy/proto/deputy/spawn/v1"
)

const (
	// tellAtOnce is how many agents one call names; the issuer takes no more.
	tellAtOnce = 20
	// tellWithin bounds one call, so that an issuer that hangs is heard of.
	tellWithin = 10 * time.Second
)

// tellNews tells of each revocation as it comes. It returns when ctx ends, a call fails or another subscription is due.
func (f *Follower) tellNews(ctx context.Context, c spawnv1.SpawnClient, sub *state.Subscription) error {
	for {
		select {
		case u, ok := <-sub.Updates:
			if !ok {
				return errors.New("revocations came faster than the issuer took them, or the state was read anew")
			}
			if err := f.tell(ctx, c, u.Revocations); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// tell says which agents revocations leave without authority. The issuer keeps none of it, and passes over what it has heard.
func (f *Follower) tell(ctx context.Context, c spawnv1.SpawnClient, revocations []feed.Revocation) error {
	var agents []string
	for _, r := range revocations {
		more, err := f.state.RevokedAgents(r.Of)
		if err != nil {
			return err
		}
		agents = append(agents, more...)
	}
	slices.Sort(agents)
	for batch := range slices.Chunk(slices.Compact(agents), tellAtOnce) {
		if err := tellOnce(ctx, c, batch); err != nil {
			return err
		}
	}
	return nil
}

func tellOnce(ctx context.Context, c spawnv1.SpawnClient, agents []string) error {
	ctx, cancel := context.WithTimeout(ctx, tellWithin)
	defer cancel()
	resp, err := c.Revoke(ctx, &spawnv1.RevokeRequest{SpiffeId: agents})
	if err != nil {
		return fmt.Errorf("telling the issuer of %d revoked agents: %w", len(agents), err)
	}
	if len(resp.ProtoReflect().GetUnknown()) > 0 {
		return errors.New("the issuer answered with fields that this version doesn't know")
	}
	return nil
}
