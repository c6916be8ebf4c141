package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// jwt writes a JWT-SVID of this agent to FILE, by go-spiffe's own client, and tries to get others: each NAME that follows, its
// parent's, and audiences that are Deputy's own.
func jwt(ctx context.Context, args []string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	source, err := workloadapi.NewJWTSource(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	x509, err := workloadapi.FetchX509SVID(ctx)
	if err != nil {
		return err
	}
	const api = "https://api.example"
	mine, err := source.FetchJWTSVID(ctx, jwtsvid.Params{Audience: api, ExtraAudiences: []string{"reports"}})
	if err != nil {
		return err
	}
	// Offline, by the bundle, as a service would; and online, as it should.
	v, err := jwtsvid.ParseAndValidate(mine.Marshal(), source, []string{"reports"})
	if err != nil {
		return err
	}
	fmt.Println("mine", v.ID == x509.ID, v.ID, len(v.Claims), v.Audience, !v.Expiry.After(x509.Certificates[0].NotAfter), time.Until(v.Expiry) <= 5*time.Minute)
	if v, err = workloadapi.ValidateJWTSVID(ctx, mine.Marshal(), api); err != nil {
		return err
	}
	fmt.Println("validated", v.ID == x509.ID, v.Claims["jti"])
	if err := os.WriteFile(args[0], []byte(mine.Marshal()), 0o644); err != nil {
		return err
	}
	if _, err := workloadapi.ValidateJWTSVID(ctx, mine.Marshal(), "another"); err == nil {
		return errors.New("a JWT-SVID for another was validated")
	}

	// Programs ask for each request that they send; the issuer is asked once.
	for range 100 {
		again, err := source.FetchJWTSVID(ctx, jwtsvid.Params{Audience: api, ExtraAudiences: []string{"reports"}})
		if err != nil {
			return err
		}
		if again.Marshal() != mine.Marshal() {
			return errors.New("another JWT-SVID for the same audiences, at once")
		}
	}
	other, err := source.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "reports", ExtraAudiences: []string{api + "/other"}})
	if err != nil {
		return err
	}
	if d := strings.Join(other.Audience, " "); d != "reports "+api+"/other" {
		return fmt.Errorf("asked for others, got one for %s", d)
	}

	names := args[1:]
	if own := x509.ID.String(); strings.Count(own, "/") > 5 {
		names = append(names, own[:strings.LastIndex(own[:strings.LastIndex(own, "/")], "/")])
	}
	for _, name := range names {
		id, err := spiffeid.FromString(name)
		if err != nil {
			return err
		}
		report("named "+name, func() (string, error) {
			v, err := source.FetchJWTSVID(ctx, jwtsvid.Params{Audience: api, Subject: id})
			return fmt.Sprint(v), err
		})
	}
	for _, audience := range []string{
		os.Getenv("A_BROKER"), os.Getenv("A_BROKER") + "/token", "spiffe://test.example/target/orders-db", "spiffe://test.example/deputy/proxy/main", "spiffe://TEST.example/target/orders-db", "",
	} {
		report("for "+audience, func() (string, error) {
			v, err := source.FetchJWTSVID(ctx, jwtsvid.Params{Audience: api, ExtraAudiences: []string{audience}})
			return fmt.Sprint(v), err
		})
	}
	// The issuer knows whose the caller is: an agent's program isn't its supervisor.
	conn := dialSocket("unix://" + os.Getenv("A_ISSUER"))
	defer conn.Close()
	report("from the issuer", func() (string, error) {
		r, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchJWTSVID(metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true"),
			&workload.JWTSVIDRequest{Audience: []string{api}, SpiffeId: x509.ID.String()})
		return fmt.Sprint(r), err
	})
	return streams(ctx)
}

// streams opens more JWT bundle streams at its supervisor than an agent may have, and lets them go: then there is room again.
func streams(ctx context.Context) error {
	conn := dialSocket(os.Getenv("SPIFFE_ENDPOINT_SOCKET"))
	defer conn.Close()
	api := workload.NewSpiffeWorkloadAPIClient(conn)
	const tried = 100
	open, stop := context.WithCancel(metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true"))
	defer stop()
	opened, refused := 0, 0
	for range tried {
		s, err := api.FetchJWTBundles(open, &workload.JWTBundlesRequest{})
		if err != nil {
			return err
		}
		if _, err := s.Recv(); status.Code(err) == codes.ResourceExhausted {
			refused++
		} else if err != nil {
			return err
		} else {
			opened++
		}
	}
	fmt.Println("streams", opened > 50 && opened < 70, opened+refused == tried)
	stop()
	for {
		_, err := workloadapi.FetchJWTBundles(ctx)
		if err == nil {
			fmt.Println("over")
			return nil
		}
		if status.Code(err) != codes.ResourceExhausted {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}
