package offline

import (
	"path/filepath"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
)

// BuildKedge builds the program to test, unless KEDGE_BINARY names it.
func BuildKedge(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kedge")
	if err := lab.BuildKedge(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	return path
}
