"""A Django project whose workers keep a connection to PostgreSQL, where the variables of libpq say."""

from django.conf import settings
from django.core.signals import request_started
from django.core.wsgi import get_wsgi_application
from django.db import OperationalError, connection
from django.dispatch import receiver
from django.http import HttpResponse
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["*"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": "postgres",
            "CONN_MAX_AGE": None,
        }
    },
    ROOT_URLCONF=__name__,
    SECRET_KEY="only for tests",
)


def count():
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM visits")
        return cursor.fetchone()[0]


# Django before 4.1 has no CONN_HEALTH_CHECKS, and goes on with a kept connection that has ended.
@receiver(request_started)
def check_connection(**_):
    if connection.connection is not None and not connection.is_usable():
        connection.close()


def show(request):
    return HttpResponse(f"{count()} visits\n")


urlpatterns = [path("", show)]
application = get_wsgi_application()

# A worker may be frozen in the middle of this, because another one is ready.
try:
    count()
except OperationalError:
    connection.close()
