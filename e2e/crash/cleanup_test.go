package crash

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/kedge-os/kedge/e2e/offline"
)

// TestCleanupKilledAtEveryChange kills the clean-up of a host that was told to
// keep fewer deployments than it has.
func TestCleanupKilledAtEveryChange(t *testing.T) {
	onAll(t, func(t *testing.T, b offline.Backend) {
		kedge, image := offline.BuildKedge(t), images(t)
		sysroot := b.Install(t, kedge, image(1))
		policy := func(text string) {
			t.Helper()
			file := filepath.Join(sysroot, b.KedgeDeployments(t, kedge, sysroot)[0], "etc/kedge/retention.toml")
			err := os.MkdirAll(filepath.Dir(file), 0o755)
			if err == nil {
				err = os.WriteFile(file, []byte(text), 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		policy("keep = 3\n")
		for _, version := range []int{2, 3} {
			offline.Run(t, kedge, "--sysroot", sysroot, "switch", image(version))
		}
		policy("")
		s := scenario{backend: b, kedge: kedge, before: sysroot, argv: []string{"--sysroot", "SYSROOT", "cleanup"}}
		calls := s.prepare(t)
		if before, after := len(s.deployments(t, s.before)), len(s.deployments(t, s.after)); before != 3 || after != 2 {
			t.Fatalf("of %d deployments the clean-up leaves %d, want 2 of 3", before, after)
		}
		points := killPoints(calls)
		if os.Getenv("KEDGE_NIGHTLY") == "" {
			points = spread(points, sample/3)
		}
		s.killAt(t, calls, points)
	})
}
