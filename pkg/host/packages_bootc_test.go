package host

import (
	"os/exec"
	"slices"
	"strings"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/ostree"
)

// bootcCollects runs bootc's garbage collection on a host with packages. It is
// ostree-ext's, whose roots are the references of images that deployments follow,
// the refs of deployments, and those of base images: what bootc does around it
// renews those below baseimage/bootc.
func bootcCollects(s *stage) {
	if s.backend != "ostree" {
		return
	}
	if _, err := exec.LookPath("cargo"); err != nil {
		s.t.Log("no cargo: ostree-ext's command line cannot be built")
		return
	}
	cli, err := lab.Make(s.t.Context(), "chunked/build-cli.sh")
	must(s.t, err)
	before := keptBases(s)
	if !slices.ContainsFunc(before, func(b keptBase) bool { return !b.image }) {
		s.t.Errorf("images keep all bases by themselves: %+v", before)
	}
	out, err := exec.CommandContext(s.t.Context(), cli, "container", "image", "prune-images", "--sysroot", s.dir, "--full").CombinedOutput()
	if err != nil {
		s.t.Fatalf("ostree-ext's garbage collection: %v\n%s", err, out)
	}
	s.t.Logf("ostree-ext's garbage collection:\n%s", out)
	if after := keptBases(s); !slices.Equal(before, after) {
		s.t.Errorf("bases of packages after the garbage collection: %+v, before it: %+v", after, before)
	}
	s.agree()
}

// keptBase is a commit that packages were put on, with all of its layers.
type keptBase struct {
	commit string
	image  bool // a ref of an image is on it
}

// keptBases fails the test for a base that is not whole.
func keptBases(s *stage) (list []keptBase) {
	s.t.Helper()
	h, err := Open(s.ctx, s.config())
	must(s.t, err)
	defer h.Close()
	store := h.store.(*ostreeStore)
	bases, err := store.bases()
	must(s.t, err)
	images, err := store.repo.Refs(ostree.ImageRefPrefix + "/")
	must(s.t, err)
	for commit := range bases {
		s.ostree("ls", "-R", "--repo="+s.dir+"/ostree/repo", commit)
		sum, err := store.repo.ResolveRev(baseRefs + commit)
		must(s.t, err)
		i, err := store.repo.ContainerManifest(sum)
		must(s.t, err)
		layers, err := i.Layers()
		must(s.t, err)
		for _, l := range layers {
			_, err := store.repo.ResolveRev(ostree.LayerRef(l.Digest))
			must(s.t, err)
		}
		k := keptBase{commit: commit}
		for _, at := range images {
			k.image = k.image || at == sum
		}
		list = append(list, k)
	}
	slices.SortFunc(list, func(a, b keptBase) int { return strings.Compare(a.commit, b.commit) })
	return list
}
