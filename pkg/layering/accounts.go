package layering

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/kedge-os/kedge/pkg/fault"
)

// sysusersFile makes the layer's users and groups on hosts whose /etc/passwd
// was changed and is therefore not the image's. It is read before the packages'
// own files, so that the numbers are those that the layer's files carry.
const sysusersFile = "usr/lib/sysusers.d/00-kedge-packages.conf"

// accountFiles are passwd(5) and group(5): NAME:PASSWORD:ID:…
var accountFiles = []struct{ kind, path, shadow, shadowLine string }{
	{"group", "etc/group", "etc/gshadow", "%s:!*::\n"},
	{"user", "etc/passwd", "etc/shadow", "%s:!*:1::::::\n"},
}

// readAccounts reads the users and groups of a root.
func readAccounts(root *os.Root) ([]Account, error) { return readAccountFiles(root, "etc") }

// readAccountFiles reads them from a directory of a root.
func readAccountFiles(root *os.Root, etc string) ([]Account, error) {
	var out []Account
	for _, f := range accountFiles {
		text, err := readFile(root, path.Join(etc, path.Base(f.path)))
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(text) {
			line = strings.TrimRight(line, "\n")
			fields := strings.Split(line, ":")
			if len(fields) < 4 {
				continue
			}
			id, err := strconv.ParseUint(fields[2], 10, 32)
			if err != nil {
				continue
			}
			out = append(out, Account{Kind: f.kind, Name: fields[0], ID: uint32(id), Line: line})
		}
	}
	return out, nil
}

// newAccounts are those of after whose names are not in before.
func newAccounts(before, after []Account) []Account {
	var out []Account
	for _, a := range after {
		if !slices.ContainsFunc(before, func(b Account) bool { return b.Kind == a.Kind && b.Name == a.Name }) {
			out = append(out, a)
		}
	}
	return out
}

// createAccounts adds the accounts of a lock to a root before the transaction,
// so that scriptlets find them and make none with other numbers.
func createAccounts(root *os.Root, accounts []Account) error {
	have, err := readAccounts(root)
	if err != nil {
		return err
	}
	for _, a := range newAccounts(have, accounts) {
		for _, h := range have {
			if h.Kind == a.Kind && h.ID == a.ID {
				return fault.New(fault.Conflict, "remove the packages and add them again; files of theirs in /var must then be given to the new number",
					"the %s %s has the number %d, which the base image now gives to %s", a.Kind, a.Name, a.ID, h.Name)
			}
		}
		for _, f := range accountFiles {
			if f.kind != a.Kind {
				continue
			}
			if err := appendLine(root, f.path, a.Line+"\n"); err != nil {
				return err
			}
			if _, err := root.Stat(f.shadow); err == nil {
				if err := appendLine(root, f.shadow, fmt.Sprintf(f.shadowLine, a.Name)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func appendLine(root *os.Root, name, line string) error {
	f, err := root.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString(line); err != nil {
		return err
	}
	return f.Close()
}

// sysusers writes accounts as sysusers.d(5) lines with their numbers.
func sysusers(accounts []Account) []byte {
	var b strings.Builder
	for _, a := range accounts {
		f := strings.Split(a.Line, ":")
		if a.Kind == "group" {
			fmt.Fprintf(&b, "g %s %d\n", a.Name, a.ID)
			for _, member := range strings.Split(f[3], ",") {
				if member != "" {
					fmt.Fprintf(&b, "m %s %s\n", member, a.Name)
				}
			}
			continue
		}
		if len(f) != 7 {
			continue
		}
		fmt.Fprintf(&b, "u %s %d:%s %s %s %s\n", a.Name, a.ID, f[3], quoteField(f[4]), quoteField(f[5]), quoteField(f[6]))
	}
	return []byte(b.String())
}

// quoteField writes a field of sysusers.d or tmpfiles.d: "-" for none, in
// quotes, with specifiers escaped.
func quoteField(s string) string {
	if s == "" {
		return "-"
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%").Replace(s) + `"`
}

// firstSystemID and lastSystemID bound the numbers of accounts that packages
// make (systemd, docs/UIDS-GIDS).
const (
	firstSystemID = 100
	lastSystemID  = 999
)

// hostNumbers holds the accounts of a layer against those of the host, which
// keeps its own /etc/passwd: a name that it has under another number gets that,
// and a number that it gave to another name is replaced by one that is free. It
// returns nil where nothing clashes.
func (s *Session) hostNumbers(accounts []Account) ([]Account, error) {
	if s.opt.HostEtc == "" || len(accounts) == 0 {
		return nil, nil
	}
	host, err := os.OpenRoot(s.opt.HostEtc)
	if err != nil {
		return nil, err
	}
	defer host.Close()
	known, err := readAccountFiles(host, "")
	if err != nil {
		return nil, err
	}
	etc := s.base.Etc
	if etc == "" {
		etc = filepath.Join(s.base.Root, "etc")
	}
	image, err := os.OpenRoot(etc)
	if err != nil {
		return nil, err
	}
	defer image.Close()
	taken, err := readAccountFiles(image, "")
	if err != nil {
		return nil, err
	}
	return renumber(accounts, known, taken)
}

// renumber gives accounts numbers that do not clash with those of the host and
// that the image has not taken.
func renumber(accounts, known, taken []Account) ([]Account, error) {
	type key struct {
		kind string
		id   uint32
	}
	names := make(map[key]string)
	for _, a := range slices.Concat(taken, accounts, known) {
		names[key{a.Kind, a.ID}] = a.Name
	}
	out := slices.Clone(accounts)
	groups := make(map[uint32]uint32) // of groups that got another number
	changed := false
	for i := range out {
		a := &out[i]
		id := a.ID
		if j := slices.IndexFunc(known, func(k Account) bool { return k.Kind == a.Kind && k.Name == a.Name }); j >= 0 {
			id = known[j].ID
		} else if names[key{a.Kind, a.ID}] != a.Name {
			for id = lastSystemID; id >= firstSystemID && names[key{a.Kind, id}] != ""; id-- {
			}
			if id < firstSystemID {
				return nil, fault.New(fault.Conflict, "remove accounts that nobody needs", "there is no number left for the %s %s", a.Kind, a.Name)
			}
		}
		if id == a.ID {
			continue
		}
		if a.Kind == "group" {
			groups[a.ID] = id
		}
		names[key{a.Kind, id}] = a.Name
		a.ID, changed = id, true
	}
	if !changed {
		return nil, nil
	}
	for i := range out {
		f := strings.Split(out[i].Line, ":")
		f[2] = fmt.Sprint(out[i].ID)
		if gid, err := strconv.ParseUint(f[3], 10, 32); err == nil && out[i].Kind == "user" {
			if to, ok := groups[uint32(gid)]; ok {
				f[3] = fmt.Sprint(to)
			}
		}
		out[i].Line = strings.Join(f, ":")
	}
	return out, nil
}
