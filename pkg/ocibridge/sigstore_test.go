package ocibridge_test

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/ocibridge"
)

// TestSigstore signs as cosign does (sigstore/cosign, specs/SIGNATURE_SPEC.md):
// an ECDSA signature, which openssl makes, of a payload that names the image's
// digest; both are an image of their own in the same repository. No blob of the
// image is asked for before the policy has agreed.
func TestSigstore(t *testing.T) {
	lab.Need(t, "openssl")
	reg := newRegistry(t)
	opt := options(t, reg.host)
	write := func(name, content string) string {
		t.Helper()
		p := filepath.Join(opt.Root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	openssl := func(args ...string) string {
		t.Helper()
		out, err := lab.Command(t.Context(), "openssl", args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	key := func(name string) (private, public string) {
		private, public = filepath.Join(opt.Root, name+".key"), filepath.Join(opt.Root, name+".pub")
		openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", private)
		openssl("pkey", "-in", private, "-pubout", "-out", public)
		return private, public
	}
	signatures, read := make(map[digest.Digest]bool), 0
	reg.serve = func(_ http.ResponseWriter, _ *http.Request, data []byte) bool {
		if !signatures[digest.FromBytes(data)] {
			read++
		}
		return false
	}
	// sign makes signatures of an image with the digest signed and keeps them
	// where those of d belong.
	sign := func(name string, signed, d digest.Digest, keys ...string) {
		t.Helper()
		m := v1.Manifest{MediaType: v1.MediaTypeImageManifest, Config: v1.Descriptor{MediaType: v1.MediaTypeImageConfig}}
		m.SchemaVersion = 2
		put := func(data []byte) (digest.Digest, int64) {
			reg.blobs[digest.FromBytes(data).String()] = data
			signatures[digest.FromBytes(data)] = true
			return digest.FromBytes(data), int64(len(data))
		}
		m.Config.Digest, m.Config.Size = put([]byte(`{}`))
		for _, key := range keys {
			payload := fmt.Sprintf(`{"critical":{"identity":{"docker-reference":"%s/os/%s"},"image":{"docker-manifest-digest":"%s"},"type":"cosign container image signature"},"optional":null}`, reg.host, name, signed)
			openssl("dgst", "-sha256", "-sign", key, "-out", filepath.Join(opt.Root, "sig"), write("payload", payload))
			sig, err := os.ReadFile(filepath.Join(opt.Root, "sig"))
			if err != nil {
				t.Fatal(err)
			}
			l := v1.Descriptor{MediaType: "application/vnd.dev.cosign.simplesigning.v1+json", Annotations: map[string]string{
				"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(sig),
			}}
			l.Digest, l.Size = put([]byte(payload))
			m.Layers = append(m.Layers, l)
		}
		reg.putManifest("os/"+name+":sha256-"+d.Encoded()+".sig", mustJSON(t, m), m.MediaType)
	}
	write("etc/containers/registries.d/test.yaml", fmt.Sprintf("docker:\n  %s:\n    use-sigstore-attachments: true\n", reg.host))

	private, public := key("signer")
	otherPrivate, otherPublic := key("other")

	image := func(name string, keys ...string) string {
		spec := imageSpec{layers: []blob{smallLayer(t, name)}}
		if len(keys) > 0 {
			d := spec.build(t).digest()
			sign(name, d, d, keys...)
		}
		return reg.push("os/"+name+":1", spec)
	}
	signed, unsigned, twice, byOther := image("signed", private), image("unsigned"), image("twice", otherPrivate, private), image("by-other", otherPrivate)
	// The tag goes on to an image that nobody signed.
	moved, copied := image("moved", private), image("copied")
	reg.push("os/moved:1", imageSpec{layers: []blob{smallLayer(t, "evil")}})
	sign("copied", digest.FromString("another"), imageSpec{layers: []blob{smallLayer(t, "copied")}}.build(t).digest(), private)

	policy := func(name, key string) string {
		return write(name, fmt.Sprintf(`{"default":[{"type":"reject"}],"transports":{"docker":{%q:[{"type":"sigstoreSigned","keyPath":%q,"signedIdentity":{"type":"matchRepository"}}]}}}`, reg.host, key))
	}
	wanted, other, missing := policy("policy.json", public), policy("other.json", otherPublic), policy("missing.json", "/nonexistent.pub")
	for _, tt := range []struct {
		name, image, policy string
		kind                fault.Kind
	}{
		{"signed", signed, wanted, 0},
		{"signed by two", twice, wanted, 0},
		{"not signed", unsigned, wanted, fault.Untrusted},
		{"signed by another key", byOther, wanted, fault.Untrusted},
		{"the policy has another key", signed, other, fault.Untrusted},
		{"the policy's key is missing", signed, missing, fault.Untrusted},
		{"the tag was moved to another image", moved, wanted, fault.Untrusted},
		{"the signature is that of another image", copied, wanted, fault.Untrusted},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ref, err := ocibridge.ParseReference(tt.image, "")
			if err != nil {
				t.Fatal(err)
			}
			opt.PolicyFile = tt.policy
			for _, verify := range []ocibridge.Verify{ocibridge.Unverified, ocibridge.Signed} {
				ref.Verify = verify
				read = 0
				src, err := ocibridge.Open(t.Context(), ref, opt)
				if got := fault.KindOf(err); got != tt.kind {
					t.Errorf("%s: %v (%v), want %v", ref.Origin(), err, got, tt.kind)
				}
				if err != nil && read > 0 {
					t.Errorf("%d blobs of the image were read before it was refused", read)
				}
				if src != nil {
					src.Close()
				}
			}
		})
	}
}
