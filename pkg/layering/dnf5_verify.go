package layering

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/kedge-os/kedge/pkg/fault"
)

// checkKeys checks packages against the keys of their repository alone: a
// number of keys, the keys, and the packages.
const checkKeys = `n=$1
shift
while [ "$n" -gt 0 ]; do
  rpmkeys --dbpath /tmp/keys --import "$1"
  shift
  n=$((n - 1))
done
exec rpmkeys --dbpath /tmp/keys --define '_pkgverify_level signature' --checksig -v "$@"`

// verify checks the signatures of a lock's packages, which lie in dir, where
// their repositories demand them.
func (e *dnf5) verify(ctx context.Context, b *box, dir, onHost string, l *Lock) error {
	out, err := b.run(ctx, dnf5Call("repo", "info", "--json"))
	if err != nil {
		return err
	}
	var repos []struct {
		ID    string   `json:"id"`
		Keys  []string `json:"gpg_key"`
		Check bool     `json:"pkg_gpgcheck"`
	}
	if err := json.Unmarshal([]byte(out.stdout), &repos); err != nil {
		return fault.New(fault.Conflict, "see whether dnf5 works in the image", "read what dnf5 says of its repositories: %w", err)
	}
	names, err := filesBySum(onHost)
	if err != nil {
		return err
	}
	for _, repo := range repos {
		var files []string
		for _, p := range l.Install {
			if name := names[p.Checksum]; p.Repository == repo.ID && name != "" {
				files = append(files, path.Join(dir, name))
			}
		}
		if !repo.Check || len(files) == 0 {
			continue
		}
		argv := []string{"sh", "-c", checkKeys, "sh", fmt.Sprint(len(repo.Keys))}
		for _, url := range repo.Keys {
			key, ok := strings.CutPrefix(url, "file://")
			if !ok {
				return fault.New(fault.Untrusted, "put the key into /etc/pki/rpm-gpg and name it there", "the key %s of the repository %s is not a file of the image", url, repo.ID)
			}
			argv = append(argv, key)
		}
		out, err := b.run(ctx, command{argv: append(argv, files...)})
		if err != nil {
			return err
		}
		if out.code != 0 {
			return fault.New(fault.Untrusted, "check the repository's key and signature", "packages of the repository %s: %s", repo.ID, lastLines(out.tail, 20))
		}
	}
	return nil
}

// filesBySum returns the names of a directory's files by their SHA-256.
func filesBySum(dir string) (map[string]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	names := make(map[string]string)
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		sum, err := fileDigest(filepath.Join(dir, e.Name()), digest.SHA256)
		if err != nil {
			return nil, err
		}
		names[sum.String()] = e.Name()
	}
	return names, nil
}
