// Package lab is what tests need of the machine they run on: programs, root,
// base images, registries and virtual machines.
package lab

import (
	"os"
	"os/exec"
	"testing"
)

// Need skips the test when a program is missing, and fails it where the
// environment says that nothing may be missing (KEDGE_REQUIRE=all, as in CI).
func Need(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			Skip(t, "program %s is not installed; hack/deps.sh installs it", p)
		}
	}
}

// NeedCargo skips the test where there is no Rust tool chain, with
// KEDGE_REQUIRE=all too: the one of Debian 12 is too old for the crates, so a
// machine may well come without. What such a test shows is also shown, on less,
// by fixtures that the crates made.
func NeedCargo(t testing.TB) {
	t.Helper()
	if _, err := exec.LookPath("cargo"); err != nil {
		t.Skip("no cargo: the programs of ostree-ext and composefs-rs cannot be built")
	}
}

// NeedRoot skips the test for an ordinary user.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Skip(t, "needs root (owners, xattrs, mounts)")
	}
}

// Skip skips the test, or fails it where KEDGE_REQUIRE=all.
func Skip(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("KEDGE_REQUIRE") == "all" {
		t.Fatalf("required here: "+format, args...)
	}
	t.Skipf(format, args...)
}
