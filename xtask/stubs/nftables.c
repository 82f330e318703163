/*
 * Takes the place of libnftables, with which CRIU can hold up connections and carry the rules of
 * a network namespace; warmimg has it do neither. CRIU also tries it when it looks at the kernel,
 * and must get an answer there: every command fails, as where the kernel has no nftables.
 */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>

struct nft_ctx {
	char none;
};

static struct nft_ctx context;

struct nft_ctx *nft_ctx_new(uint32_t flags)
{
	(void)flags;
	return &context;
}

void nft_ctx_free(struct nft_ctx *nft)
{
	(void)nft;
}

int nft_run_cmd_from_buffer(struct nft_ctx *nft, const char *command)
{
	(void)nft;
	(void)command;
	errno = EOPNOTSUPP;
	return -1;
}

/* Where the output would go; there is none. */

FILE *nft_ctx_set_output(struct nft_ctx *nft, FILE *file)
{
	(void)nft;
	(void)file;
	return NULL;
}

FILE *nft_ctx_set_error(struct nft_ctx *nft, FILE *file)
{
	(void)nft;
	(void)file;
	return NULL;
}

int nft_ctx_buffer_output(struct nft_ctx *nft)
{
	(void)nft;
	return 0;
}

int nft_ctx_buffer_error(struct nft_ctx *nft)
{
	(void)nft;
	return 0;
}

const char *nft_ctx_get_error_buffer(struct nft_ctx *nft)
{
	(void)nft;
	return "CRIU was given a stub of libnftables";
}
