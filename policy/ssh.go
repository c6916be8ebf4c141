package policy

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/cedar-policy/cedar-go/types"

	"github.com/deputymesh/deputy/actor"
)

// hostTypes are the entity types of what stands in an account at a host.
var hostTypes = map[Kind]types.EntityType{
	KindAccount: typeAccount, KindExec: typeExec, KindSubsystem: typeSubsystem, KindPath: typePath, KindForward: typeForward,
}

// Account is the resource of an account at a host: of the connection, a shell and the subsystem sftp.
func Account(target, account string) Resource {
	return Resource{Kind: KindAccount, Target: target, Account: account}
}

// Exec is the resource of a command, by its exact text.
func Exec(target, account, text string) Resource {
	return Resource{Kind: KindExec, Target: target, Account: account, Name: text}
}

// Subsystem is the resource of a subsystem other than sftp.
func Subsystem(target, account, name string) Resource {
	return Resource{Kind: KindSubsystem, Target: target, Account: account, Name: name}
}

// Path is the resource of a file or folder, by its canonical path.
func Path(target, account, path string) Resource {
	return Resource{Kind: KindPath, Target: target, Account: account, Name: path}
}

// Forward is the resource of where a forwarding leads to: host:port or the path of a socket.
func Forward(target, account, to string) Resource {
	return Resource{Kind: KindForward, Target: target, Account: account, Name: to}
}

func (r Resource) onHost() bool { return hostTypes[r.Kind] != "" }

func (r Resource) hostID() string {
	id := escape(r.Target, false) + "/" + escape(r.Account, false)
	if r.Kind == KindAccount {
		return id
	}
	return id + "/" + escape(r.Name, false)
}

func (r Resource) hostString() string {
	place := r.Account + "@" + r.Target
	switch r.Kind {
	case KindAccount:
		return "account " + place
	case KindExec:
		return fmt.Sprintf("the command %q as %s", clip(r.Name, 200), place)
	default:
		return fmt.Sprintf("%s %q as %s", r.Kind, clip(r.Name, 200), place)
	}
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}

func (r Resource) checkHost() error {
	if r.Database != "" || r.Schema != "" {
		return fmt.Errorf("a resource of the kind %s stands in an account, not in a database", r.Kind)
	}
	if r.Target == "" || len(r.Target) > maxName {
		return fmt.Errorf("the target of the %s is missing or too long", r.Kind)
	}
	if err := actor.CheckAccount(r.Account); err != nil {
		return err
	}
	switch r.Kind {
	case KindAccount:
		if r.Name != "" {
			return errors.New("an account has no name but its own")
		}
		return nil
	case KindPath:
		return actor.CheckPath(r.Name)
	case KindForward:
		return actor.CheckForward(r.Name)
	}
	if r.Name == "" || len(r.Name) > actor.MaxSSHCommand || !utf8.ValidString(r.Name) {
		return fmt.Errorf("the name of the %s is empty, too long or not UTF-8", r.Kind)
	}
	return nil
}

func (r Resource) hostEntities(into types.EntityMap) {
	account := Account(r.Target, r.Account)
	into[account.uid()] = types.Entity{
		UID:     account.uid(),
		Parents: types.NewEntityUIDSet(types.NewEntityUID(typeTarget, types.String(r.Target))),
		Attributes: types.NewRecord(types.RecordMap{
			"target": types.String(r.Target), "name": types.String(r.Account),
		}),
	}
	if r.Kind == KindAccount {
		return
	}
	attrs := types.RecordMap{
		"target": types.String(r.Target), "account": types.String(r.Account), "name": types.String(r.Name),
	}
	if r.Kind == KindExec {
		program, plain := actor.Program(r.Name)
		attrs["program"], attrs["plain"] = types.String(program), types.Boolean(plain)
	}
	into[r.uid()] = types.Entity{UID: r.uid(), Parents: types.NewEntityUIDSet(account.uid()), Attributes: types.NewRecord(attrs)}
}

// parseHostResource reads an entity of a policy back. It accepts the one spelling that ID writes.
func parseHostResource(uid types.EntityUID) (Resource, error) {
	var r Resource
	for kind, t := range hostTypes {
		if t == uid.Type {
			r.Kind = kind
		}
	}
	if r.Kind == "" {
		return Resource{}, fmt.Errorf("%s is not a resource type", uid.Type)
	}
	parts := strings.Split(string(uid.ID), "/")
	if r.Kind == KindAccount && len(parts) != 2 {
		return Resource{}, fmt.Errorf("%s should read <target>/<account>", uid)
	}
	if r.Kind != KindAccount && len(parts) != 3 {
		return Resource{}, fmt.Errorf("%s should read <target>/<account>/<%s>, with %%2F for a slash in the last part and %%25 for a percent sign", uid, r.Kind)
	}
	r.Target, r.Account = unescape(parts[0]), unescape(parts[1])
	if r.Kind != KindAccount {
		r.Name = unescape(parts[2])
	}
	if err := r.check(); err != nil {
		return Resource{}, fmt.Errorf("%s: %w", uid, err)
	}
	if r.ID() != string(uid.ID) {
		return Resource{}, fmt.Errorf("%s should be written %q", uid, r.ID())
	}
	return r, nil
}
