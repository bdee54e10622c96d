package v1_test

import (
	"encoding/json"
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/internal/jsonschema"
)

var update = flag.Bool("update", false, "write the schemas anew")

const schemaDir = "../../docs/schema"

// TestSchemas holds the committed schemas against the types.
func TestSchemas(t *testing.T) {
	g := &jsonschema.Generator{
		Docs: docs(t),
		Custom: map[reflect.Type]jsonschema.Schema{
			reflect.TypeFor[v1.ImageSignature](): {"oneOf": []any{
				jsonschema.Schema{"type": "string", "enum": []string{v1.SignatureContainerPolicy, v1.SignatureInsecure}},
				jsonschema.Schema{
					"type":       "object",
					"properties": map[string]any{v1.SignatureOSTreeRemote: jsonschema.Schema{"type": "string"}},
					"required":   []string{v1.SignatureOSTreeRemote},
				},
			}},
		},
		Enums: map[reflect.Type][]string{
			reflect.TypeFor[v1.BootOrder](): {string(v1.BootOrderDefault), string(v1.BootOrderRollback)},
		},
	}
	for name, v := range map[string]any{
		"host-v1": v1.Host{}, "plan-v1": v1.Plan{}, "history-v1": v1.HistoryEntry{}, "deploymenthistory-v1": v1.DeploymentHistory{}, "error-v1": v1.ErrorReport{},
		"result-v1": v1.Result{}, "packagelist-v1": v1.PackageList{}, "packagefound-v1": v1.PackageFound{}, "health-v1": v1.HealthStatus{}, "quarantined-v1": v1.Quarantined{}, "image-v1": v1.StoredImage{}, "filechange-v1": v1.FileChange{}, "packagediff-v1": v1.PackageDiff{}, "check-v1": v1.Check{}, "cleanup-v1": v1.Cleanup{},
		"etcchange-v1": v1.EtcChange{}, "etcreset-v1": v1.EtcReset{}, "karg-v1": v1.Karg{},
		"digest-v1": v1.ImageDigest{}, "digestcomparison-v1": v1.DigestComparison{},
	} {
		t.Run(name, func(t *testing.T) {
			got := g.Generate(v).Encode()
			file := filepath.Join(schemaDir, name+".schema.json")
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("%s is not the schema of the types (go test ./api/v1 -update): %s", file, diff)
			}
		})
	}
}

// TestHostEncoding checks presence and null as bootc has them, and that a full
// Host survives a round trip and fits the schema.
func TestHostEncoding(t *testing.T) {
	empty, err := json.Marshal(v1.NewHost())
	if err != nil {
		t.Fatal(err)
	}
	want := `{"apiVersion":"org.containers.bootc/v1","kind":"BootcHost","metadata":{"name":"host"},` +
		`"spec":{"image":null,"bootOrder":"default"},` +
		`"status":{"staged":null,"booted":null,"rollback":null,"rollbackQueued":false,"type":null,"usrOverlay":null,"readOnly":false}}`
	if string(empty) != want {
		t.Errorf("a host without deployments:\n got %s\nwant %s", empty, want)
	}

	h := full()
	b, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	schema, err := os.ReadFile(filepath.Join(schemaDir, "host-v1.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range [][]byte{empty, b} {
		if err := jsonschema.Validate(schema, doc); err != nil {
			t.Errorf("does not fit its schema: %v\n%s", err, doc)
		}
	}
	var back v1.Host
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(h, &back); diff != "" {
		t.Errorf("a host does not survive a round trip: %s", diff)
	}
	for _, bad := range []string{
		`{"apiVersion":"x","kind":"y","metadata":{},"spec":{"image":null,"bootOrder":"sideways"},"status":{}}`,
		strings.Replace(string(b), `"deploySerial":3`, `"deploySerial":"3"`, 1),
		strings.Replace(string(b), `"containerPolicy"`, `"blind"`, 1),
	} {
		if jsonschema.Validate(schema, []byte(bad)) == nil {
			t.Errorf("the schema takes a wrong document: %s", bad)
		}
	}
}

func full() *v1.Host {
	str := func(s string) *string { return &s }
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	image := &v1.ImageStatus{
		Image: v1.ImageReference{
			Image: "registry.example/os:1", Transport: "registry",
			Signature: &v1.ImageSignature{Kind: v1.SignatureContainerPolicy},
		},
		Version: str("1.2"), Timestamp: &at, ImageDigest: "sha256:" + strings.Repeat("ab", 32), Architecture: "amd64",
	}
	entry := v1.BootEntry{
		Image: image, Store: str(v1.StoreOSTreeContainer),
		OSTree: &v1.BootEntryOSTree{Stateroot: "default", Checksum: strings.Repeat("cd", 32), DeploySerial: 3},
		Kedge: &v1.KedgeEntry{
			ID: "default/" + strings.Repeat("cd", 32) + ".3", Next: true, Backend: "ostree", Kargs: []string{"rw"},
			Packages: &v1.Packages{Requested: []string{"htop"}},
		},
	}
	h := v1.NewHost()
	h.Spec.Image = &v1.ImageReference{
		Image: "os", Transport: "oci",
		Signature: &v1.ImageSignature{Kind: v1.SignatureOSTreeRemote, Remote: "origin"},
	}
	h.Status.Booted = &entry
	h.Status.OtherDeployments = []v1.BootEntry{{
		Composefs: &v1.BootEntryComposefs{Verity: strings.Repeat("0", 128), BootType: "Bls", Bootloader: "systemd"},
	}}
	h.Status.Type = str(v1.TypeBootcHost)
	h.Status.UsrOverlay = &v1.UsrOverlay{AccessMode: "readWrite", Persistence: "transient"}
	h.Status.Kedge = &v1.KedgeStatus{Backend: "ostree", Generation: "1"}
	return h
}

// docs reads the descriptions of types and fields from the package's source.
func docs(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			decl, ok := n.(*ast.GenDecl)
			if !ok || decl.Tok != token.TYPE {
				return true
			}
			for _, spec := range decl.Specs {
				spec := spec.(*ast.TypeSpec)
				out[spec.Name.Name] = flat(decl.Doc)
				st, ok := spec.Type.(*ast.StructType)
				if !ok {
					continue
				}
				for _, field := range st.Fields.List {
					for _, id := range field.Names {
						out[spec.Name.Name+"."+id.Name] = flat(field.Doc) + flat(field.Comment)
					}
				}
			}
			return false
		})
	}
	return out
}

func flat(c *ast.CommentGroup) string { return strings.Join(strings.Fields(c.Text()), " ") }
