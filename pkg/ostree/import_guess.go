package ostree

import (
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/kedge-os/kedge/pkg/selinux"
)

// policyDir is where an image has its SELinux policy.
const policyDir = "etc/selinux/"

// policyGuess makes the policy that an image brings the guess for what follows
// it: an image's archive has /etc in front of /usr. It serves the first import
// of a system, which has no policy of an earlier root. What is wrong with the
// policy, Prepare will tell.
type policyGuess struct {
	files map[string]record
}

// saw notes a file of the layer and returns the policy when it is complete: at
// the first file behind it.
func (g *policyGuess) saw(path string, r record, open func(record) (io.ReadCloser, error)) Labeler {
	if strings.HasPrefix(path, policyDir) {
		if g.files == nil {
			g.files = map[string]record{}
		}
		g.files[path] = r
		return nil
	}
	if g.files == nil {
		return nil
	}
	files := g.files
	g.files = nil
	policy, err := selinux.Load(policyFileReader{files, open})
	if err != nil || policy == nil {
		return nil
	}
	return policy
}

type policyFileReader struct {
	files map[string]record
	open  func(record) (io.ReadCloser, error)
}

func (r policyFileReader) ReadFile(name string) ([]byte, error) {
	rec, ok := r.files[name]
	if !ok {
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	f, err := r.open(rec)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxPolicyFile))
}
