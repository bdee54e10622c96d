package layering_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/layering"
)

// BenchmarkAdd adds a package with two dependencies, the metadata cached but
// for a question whether it is current: with kedge, from the request to the
// layer, and with the package manager itself in an overlay of the same root.
func BenchmarkAdd(b *testing.B) {
	for _, engine := range []string{"apt", "dnf"} {
		b.Run(engine+"/kedge", func(b *testing.B) {
			w := newWorld(b, engine)
			add := func() {
				s := w.open(b)
				defer w.close(b, s)
				if _, err := build(b.Context(), s, layering.Request{Install: []string{"lab-chain"}}); err != nil {
					b.Fatal(err)
				}
			}
			add()
			for b.Loop() {
				add()
			}
		})
		b.Run(engine+"/manager", func(b *testing.B) {
			w := newWorld(b, engine)
			cache := b.TempDir()
			w.bare(b, cache)
			for b.Loop() {
				w.bare(b, cache)
			}
		})
	}
}

// bare runs the package manager as an image builder does.
func (w *world) bare(b *testing.B, cache string) {
	dir := b.TempDir()
	for _, d := range []string{"up", "work", "mnt"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			b.Fatal(err)
		}
	}
	const apt = "mkdir -p /var/lib/apt/lists/partial /var/cache/apt/archives/partial /var/log; ln -sfn ../../usr/lib/sysimage/dpkg /var/lib/dpkg; " +
		"apt-get -q -o Dir::State::lists=/cache update && apt-get -q -y -o Dir::State::lists=/cache install lab-chain"
	const dnf = "dnf -q -y --releasever=13 --setopt=cachedir=/cache install lab-chain"
	run := map[string]string{"apt": "mkdir -p /cache/partial; " + apt, "dnf": dnf}[w.engine]
	script := fmt.Sprintf(`mount -t overlay -o lowerdir=%s,upperdir=%s/up,workdir=%s/work overlay %s/mnt
mkdir -p %[4]s/mnt/cache %[4]s/mnt/etc/yum.repos.d %[4]s/mnt/etc/apt
cp -r %[5]s/. %[4]s/mnt/etc/
exec bwrap --bind %[4]s/mnt / --bind %[6]s /cache --proc /proc --dev /dev --tmpfs /run --perms 1777 --tmpfs /tmp sh -ec '%[7]s'`,
		w.base.Root, dir, dir, dir, w.etc, cache, run)
	if _, err := lab.Command(b.Context(), "unshare", "-m", "sh", "-ec", script); err != nil {
		b.Fatal(err)
	}
}
